// How the official clients for Node behave where a server shows itself: at the door, under TLS, when it goes away or cuts somebody off.
//
//     node behaviours.mjs --client CLIENT URL BEHAVIOUR    shows one behaviour; prints `ok BEHAVIOUR` and exits with 0
//     node behaviours.mjs --client CLIENT --list           prints the names of all behaviours
//
// CLIENT is nats, transport-node or websocket. The last has no say in how TLS is done: the platform does it.
// Lines that start with `{` are what the client saw, one JSON object each; other lines ask the test to do something to the server, or to
// this process. Nothing here is particular to one server. The names are the ones of every other client.

import * as access from "./behaviour/access.mjs";
import * as encryption from "./behaviour/encryption.mjs";
import * as life from "./behaviour/life.mjs";
import * as limits from "./behaviour/limits.mjs";
import * as services from "./behaviour/services.mjs";
import { Bus } from "./harness.mjs";
import { loadLibrary } from "./library.mjs";

/** The behaviours of a client, by name. */
const behavioursOf = (client) => {
  const isOfPages = client === "websocket";
  const secure = isOfPages ? encryption.ofPages : encryption.behaviours;
  const known = Object.assign({}, secure, ...[access, life, limits, services].map((module) => module.behaviours));
  // A WebSocket is closed when the other side has said so, too: one that says nothing is waited for.
  if (isOfPages) delete known.a_silent_server_is_left;
  return known;
};

async function main() {
  const [flag, client, ...rest] = process.argv.slice(2);
  if (flag !== "--client") throw new Error("--client comes first");
  const behaviours = behavioursOf(client);
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
