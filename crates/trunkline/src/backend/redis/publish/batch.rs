//! Messages of one stream as commands, and the answer to them.
//!
//! Most messages only have to be appended: they go through a lean script, or in long batches as plain commands in one
//! transaction. A batch in which one has a deduplication id, or asks for responders, goes through the full script as a
//! whole, so that its order stays.

use std::sync::Arc;

use redis::{Cmd, Pipeline, ServerError, Value};

use super::super::entry::{EntryId, entry_id, list, number, push_id};
use super::super::link::Failure;
use super::super::routes::{Home, millis};
use super::super::scripts::{APPEND, LEAD, PROOF, PUBLISH, Script, TOLD};
use super::super::shared::Shared;
use super::queue::Item;
use super::standing::{Led, Limits, Way};

/// Messages of one stream, and the way they go.
pub(super) struct Batch {
    pub(super) home: Arc<Home>,
    pub(super) items: Vec<Item>,
    pub(super) way: Way,
    /// The server is to say nothing about the commands of a transaction, only whether it was carried out.
    pub(super) quiet: bool,
}

/// What became of a batch.
pub(super) struct Stored {
    /// One for each message, in order.
    pub(super) outcomes: Vec<Outcome>,
    /// The server's clock in ms, where it was told.
    pub(super) clock: Option<u64>,
}

/// What became of a message.
pub(super) struct Outcome {
    pub(super) id: EntryId,
    pub(super) duplicate: bool,
    /// Nobody answers requests on its subject.
    pub(super) nobody: bool,
}

/// Why there is no answer.
pub(super) enum Broken {
    /// They have not left.
    NotSent,
    Refused(ServerError),
    /// Another server has the stream, or one will have it soon; or the server does not know the script.
    Redirected(ServerError),
    Unknown,
}

/// The routes by which a batch is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) version: u64,
    /// They have just been read: a stream that knows none is to take them.
    pub(super) confirmed: bool,
}

/// An inbox is listed nowhere; who replies to one wants no answer from a registry.
fn asks(home: &Home, item: &Item) -> bool {
    item.reply.is_some() && home.stores
}

/// Whether messages only have to be appended.
pub(super) fn is_plain(home: &Home, items: &[Item]) -> bool {
    items.iter().all(|item| item.dedupe_id.is_none() && !asks(home, item))
}

impl Batch {
    /// Adds the commands that append them, and says how many answers come: the last one tells. Of a quiet batch they are
    /// two, and the first one is OK.
    pub(super) fn add_to(&self, pipeline: &mut Pipeline, shared: &Shared, known: Known) -> usize {
        match &self.way {
            Way::Led(led) => self.add_transaction(pipeline, shared, &self.version(known), led),
            Way::Lean(_) | Way::Full(_) => {
                pipeline.add_command(self.script(shared, known).1);
                1
            }
        }
    }

    /// The one script that appends them, whatever way they would go.
    pub(super) fn script(&self, shared: &Shared, known: Known) -> (&'static Script, Cmd) {
        let version = self.version(known);
        match &self.way {
            Way::Full(limits) => {
                let mut command = self.appending(shared, &PUBLISH, (&version, known.confirmed), *limits);
                for item in &self.items {
                    self.add_in_full(&mut command, shared, item);
                }
                (&PUBLISH, command)
            }
            way => {
                let limits = if let Way::Lean(limits) = way { *limits } else { Limits::default() };
                let mut command = self.appending(shared, &APPEND, (&version, known.confirmed), limits);
                for item in &self.items {
                    command.arg(&item.entry);
                }
                (&APPEND, command)
            }
        }
    }

    /// The set of the scripts that its server has to know, for `Ran`. What leads a transaction is sent with its text.
    pub(super) fn scripts(&self) -> u8 {
        match self.way {
            Way::Lean(_) => 1,
            Way::Full(_) => 2,
            Way::Led(_) => 0,
        }
    }

    fn version(&self, known: Known) -> String {
        if self.home.stores { known.version.to_string() } else { String::new() }
    }

    /// A script with what all scripts that append begin with.
    fn appending(
        &self,
        shared: &Shared,
        script: &Script,
        (version, confirmed): (&str, bool),
        due: Limits,
    ) -> Cmd {
        let (home, limits) = (&self.home, &self.home.limits);
        let mut keys = vec![home.key.clone(), home.version_key(), home.beside("added")];
        if shared.link.topology.redirects() {
            // While its slot moves, a script that names all its keys is refused before it has done anything.
            for item in &self.items {
                keys.extend(item.dedupe_id.iter().map(|id| home.of_consumer("dedupe", id)));
                if asks(home, item) {
                    keys.push(home.responders_key(Some(item.subject.as_str())));
                    keys.push(home.responders_key(None));
                }
            }
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut command = script.command(&keys);
        command
            .arg(u8::from(confirmed))
            .arg(version)
            .arg(limits.max_messages.unwrap_or(0))
            .arg(if limits.exact { "=" } else { "~" })
            .arg(due.age.map_or(0, millis))
            .arg(due.bytes.unwrap_or(0))
            .arg(limits.expiry.map_or(0, millis));
        command
    }

    fn add_in_full(&self, command: &mut Cmd, shared: &Shared, item: &Item) {
        command.arg(&item.entry);
        match &item.dedupe_id {
            Some(id) => {
                let window = millis(shared.options.dedupe_window).max(1);
                command.arg(self.home.of_consumer("dedupe", id)).arg(window)
            }
            None => command.arg("").arg(0),
        };
        command.arg(if asks(&self.home, item) { item.subject.as_str() } else { "" });
    }

    /// Where a connection is quiet, an answer to each command would cost both sides as much as the message itself. What
    /// became of the transaction lies beside the stream, and is asked for by itself.
    fn add_transaction(&self, pipeline: &mut Pipeline, shared: &Shared, version: &str, led: &Led) -> usize {
        let (home, before) = (&self.home, pipeline.len());
        let name = |number: u64| if number == 0 { String::new() } else { number.to_string() };
        let chain = home.of_consumer("chain", &shared.process);
        if self.quiet {
            pipeline.add_command(answering("OFF"));
        }
        pipeline.add_command(redis::cmd("MULTI"));
        // With its text: were it unknown to the server, the commands behind it would go unchecked.
        let mut lead = redis::cmd("EVAL");
        lead.arg(LEAD).arg(4).arg(&home.key).arg(home.version_key()).arg(home.beside("added")).arg(&chain);
        lead.arg(version).arg(led.after.1).arg(self.items.len()).arg(led.after.0);
        lead.arg(self.items.first().map_or(&[][..], |item| &item.entry));
        lead.arg(name(led.name)).arg(name(led.follows));
        pipeline.add_command(lead);
        for (item, number) in self.items.iter().zip(led.after.1 + 1..).skip(1) {
            let mut command = Cmd::with_capacity(5, home.key.len() + item.entry.len() + 50);
            command.arg("XADD").arg(&home.key);
            push_id(&mut command, (led.after.0, number));
            command.arg("m").arg(&item.entry);
            pipeline.add_command(command);
        }
        if self.quiet {
            let mut proof = redis::cmd("EVAL");
            proof.arg(PROOF).arg(2).arg(&home.key).arg(&chain).arg(name(led.name));
            push_id(&mut proof, (led.after.0, led.after.1 + self.items.len() as u64));
            pipeline.add_command(proof);
        }
        if let Some(most) = home.limits.max_messages {
            let how = if home.limits.exact { "=" } else { "~" };
            let mut command = redis::cmd("XTRIM");
            command.arg(&home.key).arg("MAXLEN").arg(how).arg(most);
            pipeline.add_command(command);
        }
        pipeline.add_command(redis::cmd("EXEC"));
        if !self.quiet {
            return pipeline.len() - before;
        }
        pipeline.add_command(answering("ON"));
        let mut told = redis::cmd("EVAL");
        told.arg(TOLD).arg(1).arg(&chain).arg(name(led.name));
        pipeline.add_command(told);
        2
    }

    /// Reads the last answer to its commands.
    pub(super) fn read(&self, answer: Value) -> Result<Stored, Broken> {
        let parts = match answer {
            Value::ServerError(error) if self.quiet && error.code() == "BROKEN" => {
                return Err(Broken::Unknown);
            }
            Value::ServerError(error) => return Err(Broken::Refused(error)),
            told if self.quiet => vec![told],
            answer => self.readable(list(answer))?,
        };
        let read = match &self.way {
            Way::Lean(_) => self.read_lean(&parts),
            Way::Full(_) => self.read_full(&parts),
            Way::Led(led) if self.quiet => {
                let clock = parts.first().map_or_else(|| Err(unexpected(&parts)), number);
                clock.map(|clock| self.stored_in_a_row(led, clock))
            }
            Way::Led(led) => match parts.first() {
                Some(Value::ServerError(error)) => return Err(Broken::Refused(error.clone())),
                Some(clock) => self.read_led(led, clock, &parts),
                None => Err(unexpected(&parts)),
            },
        };
        self.readable(read)
    }

    fn readable<T>(&self, read: Result<T, Failure>) -> Result<T, Broken> {
        read.map_err(|failure| {
            tracing::warn!(stream = self.home.name, ?failure, "a publish was answered strangely");
            Broken::Unknown
        })
    }

    fn read_lean(&self, parts: &[Value]) -> Result<Stored, Failure> {
        let [ms, first] = parts else { return Err(unexpected(parts)) };
        let (ms, first) = (number(ms)?, number(first)?);
        Ok(Stored { outcomes: self.in_a_row((ms, first)), clock: Some(ms) })
    }

    fn read_full(&self, parts: &[Value]) -> Result<Stored, Failure> {
        if parts.len() != 2 * self.items.len() {
            return Err(unexpected(parts));
        }
        let outcomes = parts.chunks_exact(2).map(|pair| {
            let flags = number(&pair[1])?;
            Ok(Outcome { id: entry_id(&pair[0])?, duplicate: flags & 1 != 0, nobody: flags & 2 != 0 })
        });
        Ok(Stored { outcomes: outcomes.collect::<Result<_, Failure>>()?, clock: None })
    }

    fn read_led(&self, led: &Led, clock: &Value, parts: &[Value]) -> Result<Stored, Failure> {
        // None can fail behind the first; should one, it is better not known than claimed.
        if parts.len() < self.items.len() || parts.iter().any(|part| matches!(part, Value::ServerError(_))) {
            return Err(unexpected(parts));
        }
        Ok(self.stored_in_a_row(led, number(clock)?))
    }

    fn stored_in_a_row(&self, led: &Led, clock: u64) -> Stored {
        Stored { outcomes: self.in_a_row((led.after.0, led.after.1 + 1)), clock: Some(clock) }
    }

    fn in_a_row(&self, (ms, first): EntryId) -> Vec<Outcome> {
        let ids = (first..).take(self.items.len()).map(|number| (ms, number));
        ids.map(|id| Outcome { id, duplicate: false, nobody: false }).collect()
    }
}

/// Says whether the server is to answer what comes next: `ON` or `OFF`.
pub(super) fn answering(whether: &str) -> Cmd {
    let mut command = redis::cmd("CLIENT");
    command.arg("REPLY").arg(whether);
    command
}

fn unexpected(parts: &[Value]) -> Failure {
    Failure::Unexpected(format!("{} values for a batch", parts.len()))
}
