//! Services with the stock clients' own frameworks: several instances, endpoints in groups and in queue groups of their own,
//! statistics, errors of handlers, and instances that stop. Each script says what it saw, and sees the same on both servers.

use std::path::Path;

use serde_json::Value;
use trunkline_testkit::environment;

use crate::command::{start, text};

use super::{Place, address_in, theirs};

const PYTHON: &str = r#"
import asyncio, json, sys
import nats
import nats.errors
from nats.micro import add_service
from nats.micro.service import ServiceError

async def main():
    url = "nats://" + sys.argv[1]
    said = {}
    asking = await nats.connect(url)
    connections, services = [], []
    for _ in range(2):
        connection = await nats.connect(url)
        connections.append(connection)

        async def double(request):
            if request.data == b"refuse":
                raise ServiceError("422", "no such number")
            if request.data == b"fail":
                raise ValueError("broken")
            await request.respond(str(2 * int(request.data)).encode(), headers={"By": "double"})

        async def same(request):
            await request.respond(request.data)

        service = await add_service(connection, name="math", version="1.2.3", description="numbers", metadata={"a": "b"})
        group = service.add_group(name="calc")
        await group.add_endpoint(name="double", handler=double)
        await group.add_group(name="inner").add_endpoint(name="same", subject="other", queue_group="mine", handler=same)
        services.append(service)
        await connection.flush()

    async def request(subject, data=b""):
        return await asking.request(subject, data, timeout=10)

    async def discover(subject, count):
        inbox = asking.new_inbox()
        subscription = await asking.subscribe(inbox)
        await asking.publish(subject, b"", reply=inbox)
        found = [json.loads((await subscription.next_msg(timeout=10)).data) for _ in range(count)]
        # An answer too many would be here by the time that another request is answered.
        await request("calc.inner.other", b"x")
        assert subscription.pending_msgs == 0, subject
        await subscription.unsubscribe()
        return found

    answers = await asyncio.gather(*(request("calc.double", str(n).encode()) for n in range(40)))
    said["answers"] = [[int(answer.data), answer.headers["By"]] for answer in answers]
    errors = [await request("calc.double", data) for data in (b"refuse", b"fail")]
    said["errors"] = [[e.headers["Nats-Service-Error"], e.headers["Nats-Service-Error-Code"]] for e in errors]
    for subject in ("$SRV.PING", "$SRV.PING.math", "$SRV.INFO.math", "$SRV.STATS"):
        found = await discover(subject, 2)
        assert len({answer["id"] for answer in found}) == 2
        said["fields of " + subject] = sorted(found[0])
    ids = sorted(answer["id"] for answer in await discover("$SRV.PING.math", 2))
    one = await discover(f"$SRV.INFO.math.{ids[0]}", 1)
    assert one[0]["id"] == ids[0]
    said["endpoints"] = [[e["name"], e["subject"], e["queue_group"]] for e in one[0]["endpoints"]]
    stats = await discover("$SRV.STATS.math", 2)
    doubles = [e for s in stats for e in s["endpoints"] if e["name"] == "double"]
    said["requests"] = [sum(e[key] for e in doubles) for key in ("num_requests", "num_errors")]
    assert all(e["num_requests"] > 0 for e in doubles), "both of them work"

    await services[0].stop()
    await connections[0].flush()
    await discover("$SRV.PING.math", 1)
    answers = await asyncio.gather(*(request("calc.double", str(n).encode()) for n in range(20)))
    said["with one"] = [int(answer.data) for answer in answers]
    await services[1].stop()
    await connections[1].flush()
    for subject in ("calc.double", "$SRV.PING.math", "$SRV.PING", "$SRV.INFO.nobody"):
        try:
            await request(subject, b"1")
            said[subject] = "answered"
        except nats.errors.NoRespondersError:
            said[subject] = "nobody"
    print(json.dumps(said, sort_keys=True))
    for connection in connections + [asking]:
        await connection.close()

asyncio.run(main())
"#;

/// For the classic package and for its successor.
const NODE: &str = r#"
const [address, client] = process.argv.slice(2);
const classic = client === "nats";
const { connect } = require(classic ? "nats" : "@nats-io/transport-node");
const servicesOf = (nc) => (classic ? nc.services : new (require("@nats-io/services").Svcm)(nc));
const bytes = (text) => new TextEncoder().encode(text);
const text = (data) => new TextDecoder().decode(data);
const all = async (iterator) => { const items = []; for await (const item of iterator) items.push(item); return items; };

(async () => {
  const said = {};
  const asking = await connect({ servers: address });
  const connections = [], services = [];
  for (let n = 0; n < 2; n++) {
    const nc = await connect({ servers: address });
    connections.push(nc);
    const service = await servicesOf(nc).add({
      name: "math", version: "1.2.3", description: "numbers", metadata: { a: "b" }, queue: "everybody",
      statsHandler: async () => ({ own: "data" }),
    });
    const group = service.addGroup("calc");
    group.addEndpoint("double", (error, message) => {
      const said = text(message.data);
      if (said === "refuse") return message.respondError(422, "no such number");
      if (said === "fail") throw new Error("broken");
      message.respond(bytes(String(2 * Number(said))));
    });
    group.addGroup("inner").addEndpoint("same", {
      subject: "other", queue: "mine", metadata: { c: "d" }, handler: (_, message) => message.respond(message.data),
    });
    services.push(service);
    await nc.flush();
  }
  const request = (subject, data = "") => asking.request(subject, bytes(data), { timeout: 10000 });
  const discover = async (what, count, ...which) => {
    const until = classic
      ? { strategy: require("nats").RequestStrategy.Count, maxMessages: count }
      : { strategy: "count", maxMessages: count };
    return all(await servicesOf(asking).client({ maxWait: 10000, ...until })[what](...which));
  };
  const answers = await Promise.all([...Array(40).keys()].map((n) => request("calc.double", String(n))));
  said.answers = answers.map((answer) => Number(text(answer.data)));
  const refused = await request("calc.double", "refuse");
  said.error = [refused.headers.get("Nats-Service-Error"), refused.headers.get("Nats-Service-Error-Code")];
  const failed = await request("calc.double", "fail");
  said.failed = failed.headers.get("Nats-Service-Error-Code");
  said.ping = Object.keys((await discover("ping", 2))[0]).sort();
  const infos = await discover("info", 2, "math");
  said.info = infos[0].endpoints.map((e) => [e.name, e.subject, e.queue_group, e.metadata ?? null]);
  const ids = infos.map((info) => info.id).sort();
  if (ids[0] === ids[1]) throw new Error("two instances have one id");
  said.one = (await discover("info", 1, "math", ids[0])).map((info) => info.id === ids[0]);
  const stats = await discover("stats", 2, "math");
  const doubles = stats.flatMap((s) => s.endpoints).filter((e) => e.name === "double");
  said.requests = [doubles.reduce((n, e) => n + e.num_requests, 0), doubles.reduce((n, e) => n + e.num_errors, 0)];
  said.own = stats[0].endpoints.map((e) => e.data ?? null);
  if (doubles.some((e) => e.num_requests === 0)) throw new Error("one of them did nothing");

  await services[0].stop();
  await connections[0].flush();
  said.left = (await discover("ping", 1, "math")).map((ping) => ping.id !== services[0].info().id);
  const more = await Promise.all([...Array(20).keys()].map((n) => request("calc.double", String(n))));
  said.more = more.map((answer) => Number(text(answer.data)));
  services[1].reset();
  said.reset = (await discover("stats", 1, "math"))[0].endpoints.map((e) => e.num_requests);
  await services[1].stop();
  await connections[1].flush();
  for (const subject of ["calc.double", "$SRV.PING.math", "$SRV.PING", "$SRV.INFO.nobody"]) {
    said[subject] = await request(subject, "1").then(() => "answered", (error) => error.code ?? error.name);
  }
  console.log(JSON.stringify(said));
  for (const nc of [...connections, asking]) await nc.close();
})().catch((error) => { console.error(error); process.exit(1); });
"#;

/// What a script says on both servers.
fn said_by(run: impl Fn(&Place, &str) -> std::process::Command) -> Value {
    let place = Place::new();
    place.write("services.py", PYTHON);
    place.write("services.cjs", NODE);
    let [ours, theirs] = [place.ours(), theirs()].map(|program| {
        let arguments = ["-p", "-1", "-a", "127.0.0.1"];
        let mut server = start(place.command(&program, &arguments), b"");
        let address = address_in(&server.until_it_says("Listening for client connections on "));
        server.until_it_says("Server is ready");
        let ended = start(run(&place, &address), b"").end();
        assert_eq!(ended.code(), 0, "{}: {}", text(&program), ended.stderr);
        serde_json::from_str::<Value>(&ended.lines().concat()).expect("JSON")
    });
    assert_eq!(ours, theirs);
    ours
}

fn check_node(client: &str) {
    let said = said_by(|place, address| {
        let mut command = place.command(Path::new("node"), &["services.cjs", address, client]);
        command.env("NODE_PATH", environment::node_path().join("node_modules"));
        command
    });
    assert_eq!(said["answers"].as_array().map(Vec::len), Some(40), "{said}");
    assert_eq!((&said["requests"][0], &said["left"][0]), (&42.into(), &true.into()), "{said}");
}

#[test]
fn instances_of_nats_py_share_requests_and_are_discovered() {
    let said = said_by(|place, address| {
        let mut command = place.command(&environment::python(), &["services.py", address]);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    });
    assert_eq!(said["requests"], serde_json::json!([42, 2]), "{said}");
    assert_eq!(said["$SRV.PING"], "nobody", "{said}");
}

#[test]
fn instances_of_the_classic_nats_js_share_requests_and_are_discovered() {
    check_node("nats");
}

#[test]
fn instances_of_nats_io_services_share_requests_and_are_discovered() {
    check_node("@nats-io/services");
}
