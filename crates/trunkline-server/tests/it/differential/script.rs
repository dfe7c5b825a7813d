//! What clients send, drawn at random: connections with their options, and who sends which operations when.

use std::fmt;

use super::world::World;

/// Tokens of subjects: few, so that subscriptions and messages meet.
const TOKENS: [&str; 3] = ["a", "b", "c"];
/// Subjects that are none, or none for everybody: both servers get them in SUB, PUB and as replies.
const ODD_SUBJECTS: [&str; 22] = [
    "a..b",
    ".a",
    "a.",
    ".",
    "..",
    "a.*",
    "*",
    ">",
    "a.>",
    "a.>.b",
    ">.a",
    "a.*b",
    "*a",
    "a>",
    "a.b*.c",
    "**",
    ">>",
    "a.**",
    "_INBOX.a",
    "gr\u{fc}\u{df}e",
    "$x.y",
    "a.\u{fffd}",
];
/// Operations that are none, or not quite. Each may end the connection; the servers have to agree. Not among them is `-ERR`
/// with a text, which ends it on both: nats-server still acts on what came with it.
const MALFORMED: [&str; 59] = [
    "NONSENSE\r\n",
    "PUBLISH a 1\r\n",
    "\r\n",
    "PUB\r\n",
    "PUB \r\n",
    "PUB a\r\n",
    "PUB a b c 1\r\n",
    "PUB a -1\r\n",
    "PUB a x\r\n",
    "PUB a 1x\r\nx\r\n",
    "SUB\r\n",
    "SUB a\r\n",
    "SUB a b c d\r\n",
    "UNSUB\r\n",
    "UNSUB a b c\r\n",
    "HPUB a 1\r\n",
    "HPUB a 12 5\r\n",
    "HPUB a x 12\r\n",
    "HPUB a 12 x\r\n",
    "HPUB a b c 12 12\r\n",
    "HPUB a 0 -1\r\n",
    "HPUB a -1 12\r\n",
    "HPUB a 12\r\nNATS/1.0\r\n\r\n\r\n",
    "SUB a b 1 2 3\r\n",
    "PUB a 2\r\nxyz\r\n",
    "PUB a 3\r\nx\r\nPUB\r\n",
    "PUB a 0\r\nx\r\n",
    "CONNECT\r\n",
    "CONNECT {\r\n",
    "CONNECT []\r\n",
    "CONNECT {\"verbose\":1}\r\n",
    "-ERR\r\n",
    "+NO\r\n",
    "PIN\r\n",
    "PI NG\r\n",
    "ping x\r\n",
    "MSG a 1 1\r\nx\r\n",
    "HMSG a 1 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    " PING\r\n",
    "\tPING\r\n",
    "SUBa 1\r\n",
    "UNSUBa\r\n",
    "A+ a\r\n",
    "RS+ a b\r\n",
    "LS+ a b\r\n",
    "RMSG $G a 1\r\nx\r\n",
    "PUB a +1\r\nx\r\n",
    "PUB a 0x1\r\nx\r\n",
    "PUB a 1.0\r\nx\r\n",
    "PUB a 18446744073709551617\r\nx\r\n",
    "PUB a 0\r\n\n",
    "HPUB a 12 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    "SUB\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "\u{16}\u{3}\u{1}\r\n",
    "CONNECT {\"account\":\"x\"}\r\n",
    "CONNECT {\"verbose\":true,}\r\n",
    "CONNECT {\"NAME\":7}\r\n",
    "CONNECT {} {}\r\n",
];
/// The same of a client that asked for headers; see `differences` for the others.
const MALFORMED_WITH_HEADERS: &str = "HPUB a 12 14\r\nNATS/1.0\r\n\r\nm\r\n";
/// Operations in unusual form that mean the usual thing.
const UNUSUAL: [&str; 31] = [
    "ping\r\n",
    "PING \r\n",
    "PING\n",
    "PiNg\r\n",
    "PONG\r\n",
    "pong x\r\n",
    "+OK\r\n",
    "+OKAY\r\n",
    "INFO {}\r\n",
    "info\t{\"ldm\":true}\r\n",
    "INFO{}\n",
    "PINGPONG\r\n",
    "PING PING\r\n",
    "+ok or not\r\n",
    "PUB a 00000000\r\n\r\n",
    "UNSUB 99 000000001\r\n",
    "UNSUB \u{fc}\r\n",
    "pub a 0\r\n\r\n",
    "PUB\ta\t0\r\n\r\n",
    "PUB   a   0  \r\n\r\n",
    "PUB a 0\n\r\n",
    "UNSUB 99\r\n",
    "UNSUB none 3\r\n",
    "UNSUB\t99\t\r\n",
    "unsub 99 1\r\n",
    "SUB  c.never.said\tx:y/1\t \r\n",
    "sub c.never.said q Qq-x:y/2\r\n",
    "UNSUB x:y/1 999999999\r\n",
    "HPUB c.never.said 0 1\r\nx\r\n",
    "hpub c.never.said 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    "HPUB c.never.said  c.d\t12 13 \r\nNATS/1.0\r\n\r\nx\r\n",
];

/// The name that a subscription is given, if the operation is one.
pub(crate) fn subscribed(operation: &[u8]) -> Option<String> {
    let line = operation.split_at_checked(4).filter(|(verb, _)| verb.eq_ignore_ascii_case(b"SUB "))?.1;
    let sid = line.split(u8::is_ascii_whitespace).rfind(|word| !word.is_empty())?;
    Some(String::from_utf8_lossy(sid).into_owned())
}

/// How a client introduces itself.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    /// The text of its CONNECT; without one it begins at once.
    pub(crate) connect: Option<String>,
}

/// What one client sends in one go.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) client: usize,
    pub(crate) operations: Vec<Vec<u8>>,
    /// After how many bytes the next write begins, over and over; empty is one write.
    pub(crate) writes: Vec<usize>,
}

impl Step {
    /// How many answers to PING it asks for.
    pub(crate) fn pings(&self) -> usize {
        let is_ping = |operation: &&Vec<u8>| {
            operation.len() >= 5 && operation[..4].eq_ignore_ascii_case(b"PING") && operation.ends_with(b"\n")
        };
        self.operations.iter().filter(is_ping).count()
    }
}

/// A whole conversation.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) clients: Vec<Hello>,
    pub(crate) steps: Vec<Step>,
    /// What is said by everybody at the same time, when the steps are over: messages alone, which say who sent them.
    pub(crate) at_once: Vec<Step>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, hello) in self.clients.iter().enumerate() {
            writeln!(f, "client {n}: {}", hello.connect.as_deref().unwrap_or("no CONNECT"))?;
        }
        for (n, step) in self.steps.iter().chain(&self.at_once).enumerate() {
            let when = if n < self.steps.len() { n.to_string() } else { "at once".to_owned() };
            writeln!(f, "{when}: client {} in writes of {:?}:", step.client, step.writes)?;
            for operation in &step.operations {
                let shown = &operation[..operation.len().min(120)];
                writeln!(f, "    {}", shown.escape_ascii())?;
            }
        }
        Ok(())
    }
}

/// Draws conversations.
pub(crate) struct Author<'a> {
    random: fastrand::Rng,
    world: &'a World,
    /// Numbers of messages, so that each can be told from all others.
    messages: usize,
    sids: usize,
    /// For each client, its names for subscriptions so far.
    known: Vec<Vec<String>>,
    /// Which of them may be limited: see [`Author::unsubscribe`].
    alone: Vec<Vec<String>>,
    /// Which clients only publish to what is a subject, as the others are told on both servers and served on one.
    pedantic: Vec<bool>,
    /// Which clients asked for headers.
    headers: Vec<bool>,
    /// As whom each client came.
    users: Vec<&'static str>,
    /// Subscriptions may end by themselves.
    limits: bool,
}

impl<'a> Author<'a> {
    pub(crate) fn new(seed: u64, world: &'a World) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self {
            random,
            world,
            messages: 0,
            sids: 0,
            known: Vec::new(),
            alone: Vec::new(),
            pedantic: Vec::new(),
            headers: Vec::new(),
            users: Vec::new(),
            limits: true,
        }
    }

    /// A conversation.
    pub(crate) fn script(mut self) -> Script {
        let count = self.random.usize(1..=4);
        self.known = vec![Vec::new(); count];
        self.alone = vec![Vec::new(); count];
        let clients: Vec<Hello> = (0..count).map(|_| self.hello()).collect();
        let asks = |hello: &Hello| {
            hello.connect.as_ref().is_some_and(|connect| connect.contains("\"headers\":true"))
        };
        self.headers = clients.iter().map(asks).collect();
        let is_pedantic = |hello: &Hello| {
            !hello.connect.as_ref().is_some_and(|connect| connect.contains("\"pedantic\":false"))
        };
        self.pedantic = clients.iter().map(is_pedantic).collect();
        // Conversations in which nothing is malformed go on for longer.
        let malformed = [0.0, 0.0, 0.01, 0.05][self.random.usize(..4)];
        let steps = self.random.usize(4..40);
        // Which messages a limit lets through is a matter of chance when they come at the same time.
        self.limits = self.chance(0.7);
        let steps = (0..steps).map(|_| self.step(count, malformed)).collect();
        let talkers = if self.limits { 0 } else { count };
        let at_once = (0..talkers).map(|client| self.messages(client)).collect();
        Script { clients, steps, at_once }
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.random.f64() < probability
    }

    fn hello(&mut self) -> Hello {
        let user = self.world.users[self.random.usize(..self.world.users.len())];
        self.users.push(user);
        if user.is_empty() && self.chance(0.05) {
            return Hello { connect: None };
        }
        let mut fields = vec![];
        for (name, usual) in [("verbose", 0.3), ("pedantic", 0.3), ("echo", 0.8), ("headers", 0.8)] {
            if self.chance(0.9) {
                let value = self.chance(usual);
                fields.push(format!("\"{name}\":{value}"));
            }
        }
        let headers = fields.iter().any(|field| field == "\"headers\":true");
        if (headers && self.chance(0.7)) || self.chance(0.03) {
            fields.push("\"no_responders\":true".to_owned());
        }
        if self.chance(0.7) {
            let protocol = if self.chance(0.05) { 2 } else { self.random.usize(..2) };
            fields.push(format!("\"protocol\":{protocol}"));
        }
        // Names of fields in other letters, twice, and with nothing to say.
        if self.chance(0.1) {
            fields.push(format!("\"VERBOSE\":{}", self.chance(0.5)));
        }
        if self.chance(0.1) {
            fields.push("\"Echo\":null,\"ACCOUNT\":\"\"".to_owned());
        }
        if self.chance(0.3) {
            fields
                .push("\"name\":\"n\",\"lang\":\"rust\",\"version\":\"1.2.3\",\"unknown\":[1,{}]".to_owned());
        }
        if !user.is_empty() {
            fields.push(user.to_owned());
        }
        Hello { connect: Some(format!("CONNECT {{{}}}\r\n", fields.join(","))) }
    }

    fn step(&mut self, clients: usize, malformed: f64) -> Step {
        let client = self.random.usize(..clients);
        let count = self.random.usize(1..=6);
        let operations = (0..count).map(|_| self.operation(client, malformed)).collect();
        let writes = match self.random.usize(..4) {
            0 => vec![1],
            1 => (0..self.random.usize(1..4)).map(|_| self.random.usize(1..60)).collect(),
            _ => Vec::new(),
        };
        Step { client, operations, writes }
    }

    /// Messages of one client, which are told from those of others by what they carry.
    fn messages(&mut self, client: usize) -> Step {
        let message = |n: usize| {
            let mut subject = self.subject(false);
            while subject.parse::<trunkline::Subject>().is_err() {
                subject = self.subject(false);
            }
            let payload = format!("p{client}.{n}");
            format!("PUB {subject} {}\r\n{payload}\r\n", payload.len()).into_bytes()
        };
        Step { client, operations: (0..30).map(message).collect(), writes: vec![200] }
    }

    fn operation(&mut self, client: usize, malformed: f64) -> Vec<u8> {
        if self.chance(malformed) {
            if self.headers[client] && self.chance(0.03) {
                return MALFORMED_WITH_HEADERS.into();
            }
            return MALFORMED[self.random.usize(..MALFORMED.len())].into();
        }
        match self.random.usize(..100) {
            0..25 => self.subscribe(client),
            25..37 => self.unsubscribe(client),
            37..70 => self.publish(client, None),
            70..90 => {
                let header = self.header();
                self.publish(client, Some(header))
            }
            90..95 => b"PING\r\n".into(),
            95..97 => self.unusual(client),
            // Not with subscriptions: see `differences`.
            97 if self.known[client].is_empty() => self.connect_again(client),
            _ => self.too_large(client),
        }
    }

    fn unusual(&mut self, client: usize) -> Vec<u8> {
        let operation = UNUSUAL[self.random.usize(..UNUSUAL.len())];
        self.known[client].extend(subscribed(operation.as_bytes()));
        operation.into()
    }

    /// Another CONNECT, which changes what it names. Of the same user, and of no other.
    fn connect_again(&mut self, client: usize) -> Vec<u8> {
        let mut fields: Vec<String> = Vec::new();
        for name in ["verbose", "echo"] {
            if self.chance(0.6) {
                fields.push(format!("\"{name}\":{}", self.chance(0.5)));
            }
        }
        if self.chance(0.5) {
            fields.extend((!self.users[client].is_empty()).then(|| self.users[client].to_owned()));
        }
        format!("CONNECT {{{}}}\r\n", fields.join(",")).into()
    }

    fn subject(&mut self, pattern: bool) -> String {
        if self.chance(0.08) {
            return ODD_SUBJECTS[self.random.usize(..ODD_SUBJECTS.len())].to_owned();
        }
        if !self.world.subjects.is_empty() && self.chance(0.5) {
            return self.world.subjects[self.random.usize(..self.world.subjects.len())].to_owned();
        }
        let mut tokens: Vec<&str> = Vec::new();
        for _ in 0..self.random.usize(1..=3) {
            let wild = pattern && self.chance(0.25);
            tokens.push(if wild { "*" } else { TOKENS[self.random.usize(..TOKENS.len())] });
        }
        if pattern && self.chance(0.2) {
            tokens.push(">");
        }
        tokens.join(".")
    }

    fn subscribe(&mut self, client: usize) -> Vec<u8> {
        let mut subject = self.subject(true);
        while self.world.avoided.contains(&&subject[..]) {
            subject = self.subject(true);
        }
        if self.chance(0.05) && !self.known[client].is_empty() {
            // A name that is in use, or was.
            let sid = self.some_sid(client);
            let queue = sid.strip_prefix('Q').map(|rest| rest.split('-').next().unwrap_or_default());
            let queue = queue.map(|queue| format!("{queue} ")).unwrap_or_default();
            return format!("SUB {subject} {queue}{sid}\r\n").into();
        }
        self.sids += 1;
        let n = self.sids;
        let (queue, sid) = match self.random.usize(..10) {
            0..6 => (String::new(), n.to_string()),
            6..9 => {
                let queues = self.world.queues;
                let queue = queues[self.random.usize(..queues.len())];
                (format!("{queue} "), format!("Q{queue}-{n}"))
            }
            _ => (format!("alone{n} "), format!("Qalone{n}-{n}")),
        };
        if queue.is_empty() || queue.starts_with("alone") {
            self.alone[client].push(sid.clone());
        }
        self.known[client].push(sid.clone());
        format!("SUB {subject} {queue}{sid}\r\n").into()
    }

    fn some_sid(&mut self, client: usize) -> String {
        let known = &self.known[client];
        known[self.random.usize(..known.len())].clone()
    }

    /// Now, or after so many messages. Members of queue groups with others are never limited: how many messages each of
    /// them has had is a matter of chance.
    fn unsubscribe(&mut self, client: usize) -> Vec<u8> {
        if self.limits && self.chance(0.6) && !self.alone[client].is_empty() {
            let alone = &self.alone[client];
            let sid = alone[self.random.usize(..alone.len())].clone();
            return format!("UNSUB {sid} {}\r\n", self.random.usize(..5)).into();
        }
        if self.known[client].is_empty() || self.chance(0.1) {
            return b"UNSUB 12345\r\n".into();
        }
        format!("UNSUB {}\r\n", self.some_sid(client)).into()
    }

    fn header(&mut self) -> Vec<u8> {
        match self.random.usize(..10) {
            0 => b"NATS/1.0\r\n\r\n".into(),
            1 => b"NATS/1.0 503\r\n\r\n".into(),
            2 => b"NATS/1.0\r\nA: 1\r\nA: 2\r\nb:  x y \r\n\r\n".into(),
            3 => b"NATS/1.0 100 Idle\r\nC: \r\n\r\n".into(),
            // Not a header block at all: no server looks.
            4 => b"anything".into(),
            5 => b"NATS/1.0\r\n".into(),
            6 => b"NATS/1.0\r\nA: 1".into(),
            7 => b"NATS/1.0\r\n: none\r\nno colon\r\n\r\n".into(),
            8 => b"NATS/9.9 999 what\r\n\r\n\r\n".into(),
            _ => b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n".into(),
        }
    }

    fn publish(&mut self, client: usize, header: Option<Vec<u8>>) -> Vec<u8> {
        self.messages += 1;
        let mut subject = self.subject(false);
        while self.pedantic[client] && subject.parse::<trunkline::Subject>().is_err() {
            subject = self.subject(false);
        }
        let reply = match self.random.usize(..10) {
            0..6 => String::new(),
            6..9 => format!("{} ", self.subject(false)),
            _ => "_INBOX.a ".to_owned(),
        };
        let mut payload = format!("m{}", self.messages).into_bytes();
        match self.random.usize(..20) {
            0 => payload.clear(),
            1 => payload.extend_from_slice(b"\r\nPUB a 1\r\nx\r\n"),
            2 => payload.resize(self.random.usize(100..self.world.max_payload / 2), b'.'),
            3 => payload.resize(self.world.max_payload - header.as_ref().map_or(0, Vec::len), b'-'),
            _ => {}
        }
        let mut operation = match &header {
            None => format!("PUB {subject} {reply}{}\r\n", payload.len()).into_bytes(),
            Some(header) => {
                let total = header.len() + payload.len();
                format!("HPUB {subject} {reply}{} {total}\r\n", header.len()).into_bytes()
            }
        };
        operation.extend_from_slice(&header.unwrap_or_default());
        operation.extend_from_slice(&payload);
        operation.extend_from_slice(b"\r\n");
        operation
    }

    /// Beyond what the server takes: of payload, or of a line.
    fn too_large(&mut self, client: usize) -> Vec<u8> {
        if self.chance(0.7) {
            return b"PING\r\n".into();
        }
        let over = self.world.max_payload + self.random.usize(1..100);
        let long = "a".repeat(self.world.max_control_line + self.random.usize(..4));
        match self.random.usize(..5) {
            0 => format!("PUB a {over}\r\n{}\r\n", "x".repeat(over)),
            1 if self.headers[client] => {
                format!("HPUB a 12 {over}\r\nNATS/1.0\r\n\r\n{}\r\n", "x".repeat(over - 12))
            }
            2 => format!("PUB {long} 1\r\nx\r\n"),
            3 => format!("SUB {long} 1\r\n"),
            _ => format!("UNSUB {long}\r\n"),
        }
        .into()
    }
}
