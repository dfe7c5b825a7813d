// How the official clients for Node behave where a server shows itself: at the door, under TLS, when it goes away or cuts somebody off.
//
//     node behaviours.mjs --client nats|transport-node URL BEHAVIOUR    shows one behaviour; prints `ok BEHAVIOUR` and exits with 0
//     node behaviours.mjs --client nats|transport-node --list           prints the names of all behaviours
//
// Lines that start with `{` are what the client saw, one JSON object each; other lines ask the test to do something to the server, or to
// this process. Nothing here is particular to one server. The names are the ones of every other client.

import * as access from "./behaviour/access.mjs";
import * as encryption from "./behaviour/encryption.mjs";
import * as life from "./behaviour/life.mjs";
import * as limits from "./behaviour/limits.mjs";
import * as services from "./behaviour/services.mjs";
import { Bus } from "./harness.mjs";
import { loadLibrary } from "./library.mjs";

const behaviours = Object.assign({}, ...[access, encryption, life, limits, services].map((module) => module.behaviours));

async function main() {
  const [flag, client, ...rest] = process.argv.slice(2);
  if (flag !== "--client") throw new Error("--client comes first");
  if (rest[0] === "--list") {
    console.log(Object.keys(behaviours).join("\n"));
    return;
  }
  const [url, name] = rest;
  const bus = new Bus(url, loadLibrary(client));
  await behaviours[name](bus);
  await bus.close();
  console.log(`ok ${name}`);
}

// A rejected promise of the client's own, or an exception in a callback, is a failure too.
main().then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
