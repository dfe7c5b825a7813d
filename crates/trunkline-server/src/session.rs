//! The session of one client: what each operation does. No socket, no clock, no waiting; bytes in, staged bytes out.
//!
//! Behaviour that clients rely on follows nats-server; see
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>.
//!
//! Who the client is and what it may is in `access`. A publish begins in `publish`; it goes to its targets one message at a
//! time (`delivery`), or together with those behind it (`run`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytestring::ByteString;
use trunkline::Pattern;
use trunkline::backend::memory::{Hub, Target};
use trunkline::memory::Holding;
use trunkline::observe::Observer;
use trunkline_core::{MatchCache, Role};
use trunkline_protocol::{ClientOp, ConnectOptions, Parsed, ProtocolError, ServerError, encode, parse};

use access::{Access, Violation};

use crate::batches::Others;
use crate::bridge::front::Front;
use crate::client::Client;
use crate::closed::Closed;
use crate::options::Limits;
use crate::shared::Shared;
use crate::staging::{self, Outgoing, Staging};
use crate::subscription::{Subscription, Subscriptions};
use crate::trace::{self, about};

mod access;
mod delivery;
mod publish;
mod run;
mod user_info;

/// The protocol number of clients that understand INFO at any time.
const PROTOCOL_INFO: i64 = 1;

/// What came of a piece of input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fed {
    /// Bytes of whole operations.
    pub(crate) consumed: usize,
    /// How many bytes, counted behind `consumed`, it takes to go on; 0 when nothing is left.
    pub(crate) need: usize,
    /// The connection ends once what is staged was sent.
    pub(crate) close: Option<Closed>,
    /// A password is to be checked before anything else is fed: [`Session::take_verification`].
    pub(crate) wait: bool,
    /// What was done is enough for one turn; the rest of the input is to be fed again, after others had theirs.
    pub(crate) more: bool,
}

pub(crate) struct Session {
    server: Arc<Shared>,
    client: Arc<Client>,
    /// Where the client's account meets.
    hub: Arc<Hub>,
    /// What sees the messages of that hub, at hand so that nobody pays for looking where nobody looks on.
    observer: Option<Arc<Observer>>,
    access: Access,
    /// The bounds that it goes by, of the same time as `access`.
    limits: Arc<Limits>,
    options: Arc<ConnectOptions>,
    cache: MatchCache<Target>,
    /// On a bridge, where operations become orders; `None` in front of the hub of this process.
    bridge: Option<Front>,
    /// Draws members of queue groups.
    random: fastrand::Rng,
    /// It has unsubscribed since the last PING.
    unsubscribed: bool,
    /// What the PONG waits for that says so; on the heap, as hardly any client has it.
    others: Option<Box<Others>>,
    /// The first PING after CONNECT came, and the second INFO was sent to a client that understands it.
    introduced: bool,
}

impl Session {
    pub(crate) fn new(server: Arc<Shared>, client: Arc<Client>) -> Self {
        let random = fastrand::Rng::with_seed(client.id);
        let bridge = client.orders.clone().map(Front::new);
        let mut session = Self {
            hub: server.hub.clone(),
            observer: server.observer(&server.hub),
            access: Access::new(),
            limits: server.limits(),
            server,
            client,
            options: Arc::default(),
            cache: MatchCache::default(),
            bridge,
            random,
            unsubscribed: false,
            others: None,
            introduced: false,
        };
        session.open();
        session
    }

    /// Acts on the whole operations at the start of `input`.
    pub(crate) fn feed(&mut self, input: &[u8], staging: &mut Staging) -> Fed {
        let is_traced = trace::is_wanted();
        let mut fed = Fed { consumed: 0, need: 0, close: None, wait: false, more: false };
        let mut outcome = Ok(());
        let mut is_held = false;
        if self.is_outdated() {
            outcome = self.reconsider(staging);
        }
        let limits = self.protocol_limits();
        let mut turn = Turn { input, limits, start: 0, consumed: 0, messages: 0, bytes: 0, is_traced };
        loop {
            match outcome {
                Ok(()) | Err(Stop::Refused) => {}
                Err(Stop::Close(why)) => fed.close = Some(why),
                Err(Stop::Wait) => fed.wait = true,
                Err(Stop::Later) => {
                    turn.consumed = turn.start;
                    is_held = true;
                }
            }
            if fed.close.is_some() || fed.wait || is_held || staging.is_full() {
                fed.more = fed.close.is_none() && turn.consumed < input.len();
                break;
            }
            let Some(first) = input.get(turn.consumed) else { break };
            if let Err(stop) = self.knock(*first, staging) {
                outcome = Err(stop);
                continue;
            }
            outcome = match parse(&input[turn.consumed..], &turn.limits) {
                Ok(Parsed::Op(op, taken)) => {
                    turn.start = turn.consumed;
                    turn.consumed += taken;
                    if is_traced && self.others.is_none() {
                        trace::received(&self.client, &op);
                    }
                    self.operate(op, &mut turn, staging)
                }
                Ok(Parsed::Incomplete { need }) => {
                    fed.need = need;
                    break;
                }
                Err(error) => {
                    self.note_broken(&error);
                    error.write(staging.line(&self.client));
                    Err(Stop::Close(ending_of(&error)))
                }
            };
        }
        fed.consumed = turn.consumed;
        self.cache.trim();
        self.finish_orders();
        if fed.consumed > 0 {
            self.client.touch(self.server.now_ms());
            self.client.is_alive();
        }
        if turn.messages > 0 {
            self.client.received.messages.fetch_add(turn.messages, Ordering::Relaxed);
            self.client.received.bytes.fetch_add(turn.bytes, Ordering::Relaxed);
        }
        fed
    }

    fn protocol_limits(&self) -> trunkline_protocol::Limits {
        trunkline_protocol::Limits {
            max_control_line: self.limits.max_control_line,
            max_payload: self.limits.max_payload,
        }
    }

    /// Hands over what a bridge is to do.
    fn finish_orders(&mut self) {
        if let Some(bridge) = &mut self.bridge {
            bridge.finish();
        }
    }

    /// Lets go of every subscription. What it returns is still to be ended, and to be taken out of the routing table, by
    /// [`Session::forget_all`].
    pub(crate) fn take_all(&mut self) -> Vec<Arc<Subscription>> {
        let subscriptions: Subscriptions = std::mem::take(&mut *self.client.table.lock());
        self.client.subscriptions.store(0, Ordering::Relaxed);
        subscriptions.into_vec()
    }

    /// Takes subscriptions that were ended out of the routing table.
    pub(crate) fn forget_all(&self, ended: &[Arc<Subscription>]) {
        for subscription in ended {
            if let Some(id) = subscription.id.get() {
                self.hub.router().remove(&subscription.pattern, *id);
            }
        }
        self.hub.charge_routes();
    }

    /// Tells the log why the client's connection ends: it made a mistake that stock clients do not make.
    #[cold]
    fn note_broken(&self, error: &ProtocolError) {
        let reason = error.wire();
        let (size, limit) = match error {
            ProtocolError::MaxPayload { size, limit } => (Some(*size), Some(*limit)),
            _ => (None, None),
        };
        match self.server.refusals.may_tell(Instant::now()) {
            true => about!(warn, self.client, %error, reason, size, limit, "broken protocol"),
            false => about!(debug, self.client, %error, reason, size, limit, "broken protocol"),
        }
    }

    /// About how many bytes it takes from batch to batch.
    #[inline]
    pub(crate) fn held_bytes(&self) -> usize {
        self.cache.held_bytes()
    }

    /// Forgets what only makes it faster.
    pub(crate) fn forget_answers(&mut self) {
        self.cache.clear();
    }

    #[inline]
    fn operate(&mut self, op: ClientOp<'_>, turn: &mut Turn<'_>, staging: &mut Staging) -> Result<(), Stop> {
        match op {
            ClientOp::Pub { subject, reply, header, payload } => {
                // Where the payload lies, to write a large one from the read buffer itself.
                let at = staging::place_of(payload, turn.input);
                turn.count(1, payload.len() + header.map_or(0, <[u8]>::len));
                let message = Outgoing { subject, reply, header, payload, at };
                return self.publish(&message, turn, staging);
            }
            ClientOp::Sub { subject, queue, sid } => {
                staging.subscribed();
                self.subscribe(subject, queue, sid, staging)?;
            }
            ClientOp::Unsub { sid, max } => {
                staging.subscribed();
                self.unsubscribe(sid, max);
            }
            ClientOp::Ping => {
                self.confirm()?;
                encode::pong(self.line(staging));
                self.introduce(staging);
                return Ok(());
            }
            ClientOp::Pong => {
                self.client.pong_received();
                return Ok(());
            }
            ClientOp::Connect(json) => self.connect(json, staging)?,
            ClientOp::Err(text) => {
                let text = String::from_utf8_lossy(text);
                match self.server.refusals.may_tell(Instant::now()) {
                    true => about!(warn, self.client, %text, "client reports an error"),
                    false => about!(debug, self.client, %text, "client reports an error"),
                }
                return Err(Stop::Close(Closed::ClientError));
            }
            ClientOp::Ok | ClientOp::Info => return Ok(()),
        }
        self.say_ok(staging);
        Ok(())
    }

    fn say_ok(&mut self, staging: &mut Staging) {
        if self.options.verbose {
            encode::ok(self.line(staging));
        }
    }

    /// Where to write what the client is told behind everything it has asked for.
    fn line<'a>(&'a mut self, staging: &'a mut Staging) -> &'a mut Vec<u8> {
        match &mut self.bridge {
            None => staging.line(&self.client),
            Some(bridge) => bridge.line(),
        }
    }

    /// Before a PONG, which says that nothing more comes for what the client has unsubscribed.
    #[inline]
    fn confirm(&mut self) -> Result<(), Stop> {
        if std::mem::take(&mut self.unsubscribed) {
            self.others = Some(Box::new(Others::now()));
        }
        match &mut self.others {
            None => Ok(()),
            Some(others) if !others.are_over() => Err(Stop::Later),
            Some(_) => {
                self.others = None;
                Ok(())
            }
        }
    }

    /// After the first PING of a client that understands it comes an INFO about this very connection.
    fn introduce(&mut self, staging: &mut Staging) {
        if self.introduced || self.client.connect().is_none() {
            return;
        }
        self.introduced = true;
        self.client.first_ping_received();
        if self.options.protocol >= PROTOCOL_INFO {
            let mut info = self.server.info(&self.client);
            info.connect_info = true;
            info.remote_account = self.client.identity().map(|identity| identity.account.name.to_string());
            info.write(self.line(staging));
        }
    }

    fn connect(&mut self, json: &[u8], staging: &mut Staging) -> Result<(), Stop> {
        // Another one changes what it names and nothing else.
        let options = match self.options.updated(json) {
            Ok(options) => options,
            Err(error) => {
                match self.server.refusals.may_tell(Instant::now()) {
                    true => about!(warn, self.client, %error, "CONNECT is not understood"),
                    false => about!(debug, self.client, %error, "CONNECT is not understood"),
                }
                staging.line(&self.client).extend_from_slice(b"-ERR 'Parser Error'\r\n");
                return Err(Stop::Close(Closed::Protocol));
            }
        };
        self.authenticate(options, staging)
    }

    /// Keeps what the CONNECT of a client says that may be here.
    fn accept(&mut self, mut options: ConnectOptions, staging: &mut Staging) -> Result<(), Stop> {
        if !(0..=PROTOCOL_INFO).contains(&options.protocol) {
            return self.refuse(ServerError::InvalidClientProtocol, staging);
        }
        options.headers &= self.server.headers;
        if options.no_responders && !options.headers {
            return self.refuse(ServerError::NoRespondersRequiresHeaders, staging);
        }
        if let Some(bridge) = &mut self.bridge {
            let origin = (!options.echo).then(|| self.server.origin(&self.client));
            origin.iter().for_each(|origin| self.client.set_origin(origin.clone()));
            bridge.set_origin(origin);
        }
        self.options = Arc::new(options);
        self.client.set_connect(self.options.clone());
        if let Some(observer) = &self.observer {
            observer.client_came(self.client.id, &self.client.seen_as());
        }
        Ok(())
    }

    /// What sees its messages.
    pub(crate) fn observer(&self) -> Option<&Arc<Observer>> {
        self.observer.as_ref()
    }

    fn refuse(&mut self, error: ServerError<'_>, staging: &mut Staging) -> Result<(), Stop> {
        if error.closes() {
            // At once: what else there is to say is said to nobody.
            error.write(staging.line(&self.client));
            return Err(Stop::Close(Closed::Protocol));
        }
        error.write(self.line(staging));
        Err(Stop::Refused)
    }

    fn subscribe(
        &mut self,
        subject: &[u8],
        queue: Option<&[u8]>,
        sid: &[u8],
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        let wanted = wanted(subject, queue);
        let may_subscribe = match &wanted {
            Some((pattern, queue)) => self.may_subscribe(pattern, queue.as_deref()),
            None => self.may_ask_for(subject, queue),
        };
        if !may_subscribe {
            self.server.count_denied_subscription(&self.client);
            self.note_violation(Violation::Subscribe { queue, sid }, subject);
            return self.refuse(ServerError::SubscribePermission { subject, queue }, staging);
        }
        if self.limits.max_subscription_tokens.is_some_and(|max| tokens(subject) > max) {
            self.server.count_refused_subscription();
            self.note_violation(Violation::Tokens { sid }, subject);
            return self.refuse(ServerError::TooManyTokens { subject }, staging);
        }
        let subscription = wanted.map(|(pattern, queue)| {
            let subscription = Arc::new(Subscription::new(self.client.clone(), sid, pattern, queue));
            self.guard(&subscription);
            subscription
        });
        if let Err(error) = self.server.memory.check(Holding::Subscriptions, 0) {
            return self.refuse_subscription(&error, staging);
        }
        let subscription = {
            let mut table = self.client.table.lock();
            // The limit first, then the name, then the pattern: clients are told of the mistake of which nats-server tells.
            if table.len() >= self.limits.max_subscriptions {
                drop(table);
                return self.refuse_subscription(&TooMany(self.limits.max_subscriptions), staging);
            }
            // A name in use keeps its subscription, as on nats-server.
            if table.get(sid).is_some() {
                return Ok(());
            }
            let Some(subscription) = subscription else {
                drop(table);
                return self.refuse(ServerError::InvalidSubject, staging);
            };
            table.insert(subscription.clone());
            self.client.subscriptions.store(table.len() as u64, Ordering::Relaxed);
            subscription
        };
        if let Some(bridge) = &mut self.bridge {
            bridge.subscribe(subscription);
            return Ok(());
        }
        let role = subscription.queue.clone().map_or(Role::Subscriber, Role::QueueMember);
        let target = Target::Session(subscription.clone());
        let id = self.hub.router().insert(&subscription.pattern, role, target);
        let _ = subscription.id.set(id);
        self.hub.charge_routes();
        Ok(())
    }

    #[cold]
    fn refuse_subscription(
        &mut self,
        why: &dyn std::error::Error,
        staging: &mut Staging,
    ) -> Result<(), Stop> {
        // Whoever asks for a million too many is not to fill the log with them.
        let before = self.server.count_refused_subscription();
        if (before + 1).is_power_of_two() {
            about!(warn, self.client, error = %why, "a subscription is refused");
        }
        self.refuse(ServerError::MaxSubscriptions, staging)
    }

    /// Unknown names are tolerated: clients unsubscribe from what ended by itself.
    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) {
        // Also where it is unknown by now: what made its last delivery may not have written it. On a bridge the lane sees to
        // the order of all that.
        self.unsubscribed = self.bridge.is_none();
        let goes_on = |max| !self.client.table.lock().get(sid).is_some_and(|s| s.limit(max));
        if !max.is_some_and(goes_on) {
            self.forget(sid);
        }
    }

    fn forget(&mut self, sid: &[u8]) {
        let removed = {
            let mut table = self.client.table.lock();
            let removed = table.remove(sid);
            self.client.subscriptions.store(table.len() as u64, Ordering::Relaxed);
            removed
        };
        if let Some(subscription) = removed {
            if trace::is_wanted() {
                trace::unsubscribed(&self.client, sid);
            }
            if let Some(bridge) = &mut self.bridge {
                // What was published by now still goes to it.
                return bridge.unsubscribe(subscription);
            }
            subscription.end();
            if let Some(id) = subscription.id.get() {
                self.hub.router().remove(&subscription.pattern, *id);
                self.hub.charge_routes();
            }
        }
    }
}

/// Why an operation was not carried out.
enum Stop {
    /// The client was told; its `-ERR` stands in place of `+OK`.
    Refused,
    /// The connection ends.
    Close(Closed),
    /// It is not known yet whether it will be: a password is to be checked.
    Wait,
    /// It is to be carried out when others have had their turn.
    Later,
}

/// The client has as many subscriptions as it may.
#[derive(Debug, thiserror::Error)]
#[error("the client has {0} subscriptions already, which is the limit (server.limits.max_subscriptions)")]
struct TooMany(usize);

/// How far a piece of input was acted on.
struct Turn<'a> {
    input: &'a [u8],
    limits: trunkline_protocol::Limits,
    /// Where the operation at hand begins.
    start: usize,
    /// Bytes of whole operations, the one at hand among them.
    consumed: usize,
    /// Published so far.
    messages: u64,
    bytes: u64,
    /// Every operation goes to the log.
    is_traced: bool,
}

impl Turn<'_> {
    fn count(&mut self, messages: usize, bytes: usize) {
        self.messages += messages as u64;
        self.bytes += bytes as u64;
    }
}

/// What the end of a connection is called that comes of it.
fn ending_of(error: &ProtocolError) -> Closed {
    match error {
        ProtocolError::MaxPayload { .. } => Closed::PayloadTooLarge,
        ProtocolError::ControlLine { .. } => Closed::LineTooLong,
        _ => Closed::Protocol,
    }
}

/// Counted as nats-server counts them, in what may be no subject, too.
fn tokens(subject: &[u8]) -> usize {
    subject.split(|byte| *byte == b'.').count()
}

/// The pattern and the queue group of a subscription; `None` where one of them is none.
fn wanted(subject: &[u8], queue: Option<&[u8]>) -> Option<(Pattern, Option<ByteString>)> {
    let queue = match queue {
        Some(queue) => Some(ByteString::from(std::str::from_utf8(queue).ok()?)),
        None => None,
    };
    Some((Pattern::from_bytes(subject).ok()?, queue))
}
