//! One run of a component: its guardian, what it writes, and how it ends.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::guardian::SELF;
use super::heir::HEIR;
use super::lines::Lines;
use super::log::{Entry, Item, Stream};
use super::machine::{Event, Exit};
use super::orphans::Children;
use super::recipe::Recipe;
use super::wire::{self, Order, Report};

/// Read at once from a pipe of a component.
const READ_BYTES: usize = 16 << 10;
/// Last lines that are kept to explain a failure.
const LAST_LINES: usize = 5;
/// How long its last words may take, once everybody who could write to its pipes has ended.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// What happened to a run of a component.
#[derive(Debug)]
pub(super) struct Happened {
    pub(super) index: usize,
    pub(super) run: u32,
    pub(super) event: Event,
}

/// The last lines of a component. The lock is held to add or copy a few lines, never across a wait.
pub(super) type LastLines = Arc<Mutex<VecDeque<String>>>;

/// What a run needs.
pub(super) struct Run {
    pub(super) index: usize,
    pub(super) run: u32,
    /// Name of the component.
    pub(super) name: String,
    pub(super) recipe: Recipe,
    pub(super) children: Children,
    /// A line with this text says that it is ready.
    pub(super) ready_text: Option<String>,
    pub(super) orders: Receiver<Order>,
    pub(super) events: Sender<Happened>,
    pub(super) log: Sender<Item>,
    pub(super) last_lines: LastLines,
}

/// A run whose processes are there.
struct Spawned {
    /// The heir of the guardian.
    child: Child,
    /// To the guardian.
    link: UnixStream,
    command_bytes: Vec<u8>,
}

impl Run {
    /// Runs the component to its end, of which the last event tells. Dropping the future ends the component, too: the
    /// guardian sees its socket close.
    pub(super) async fn carry_out(mut self) {
        let exit = match self.spawn() {
            Ok(spawned) => self.watch(spawned).await,
            Err(error) => Exit::NotStarted(format!("it cannot be started: {error}")),
        };
        self.tell(Event::Ended(exit)).await;
    }

    fn spawn(&self) -> io::Result<Spawned> {
        let recipe = &self.recipe;
        let arguments = recipe.arguments.iter().map(OsStr::new);
        let command_bytes = wire::command_bytes([recipe.program.as_os_str()].into_iter().chain(arguments))?;
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let link = UnixStream::from_std(ours)?;
        let mut command = Command::new(SELF);
        command
            .arg0("component")
            .arg(HEIR)
            .arg(&self.name)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C at the terminal is for `up` alone, which ends components in their order.
            .process_group(0);
        for name in &recipe.removed {
            command.env_remove(name);
        }
        command.envs(&recipe.variables);
        if let Some(cwd) = &recipe.cwd {
            command.current_dir(cwd);
        }
        // With the command goes this side's copy of the guardian's end, without which its closing would not be seen.
        Ok(Spawned { child: self.children.spawn(&mut command)?, link, command_bytes })
    }

    async fn watch(&mut self, spawned: Spawned) -> Exit {
        let Spawned { mut child, link, command_bytes } = spawned;
        let mut pumps = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            pumps.spawn(self.pump(Stream::Stdout).all_of(stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.spawn(self.pump(Stream::Stderr).all_of(stderr));
        }
        let exit = self.converse(link, &command_bytes).await;
        // It has nothing left to do but to end.
        self.children.wait(&mut child).await;
        if matches!(exit, Exit::Lost) {
            // Whoever was to clean up may have been killed, too. What it left is here by now.
            self.children.end_orphans().await;
        }
        // Its last words are shown before what is said of its end.
        let all_said = async {
            while pumps.join_next().await.is_some() {}
            let (done, written) = oneshot::channel();
            if self.log.send(Item::Written(done)).await.is_ok() {
                let _ = written.await;
            }
        };
        if tokio::time::timeout(LAST_WORDS_WITHIN, all_said).await.is_err() {
            tracing::debug!("the last words of a component are not shown yet");
        }
        exit
    }

    /// Talks to the guardian until it says how the component ended, or is not there any more.
    async fn converse(&mut self, link: UnixStream, command_bytes: &[u8]) -> Exit {
        let (reports, mut orders) = link.into_split();
        // One that is not there any more is noticed below.
        let _ = orders.write_all(command_bytes).await;
        let mut reports = BufReader::new(reports).lines();
        loop {
            tokio::select! {
                line = reports.next_line() => {
                    let report = line.ok().flatten().and_then(|line| serde_json::from_str(&line).ok());
                    match report {
                        Some(Report::Started { pid }) => self.tell(Event::Started { pid }).await,
                        Some(Report::NotStarted { reason }) => return Exit::NotStarted(reason),
                        Some(Report::Ended { code: Some(code), .. }) => return Exit::Code(code),
                        Some(Report::Ended { signal: Some(signal), .. }) => return Exit::Signal(signal),
                        Some(Report::Ended { .. }) => return Exit::Lost,
                        None => return Exit::Lost,
                    }
                }
                Some(order) = self.orders.recv() => {
                    // A guardian that is not there any more is noticed above.
                    let _ = orders.write_u8(order.byte()).await;
                }
            }
        }
    }

    async fn tell(&self, event: Event) {
        let happened = Happened { index: self.index, run: self.run, event };
        // Nobody listens any more when everything is being given up.
        let _ = self.events.send(happened).await;
    }

    fn pump(&self, stream: Stream) -> Pump {
        Pump {
            index: self.index,
            run: self.run,
            stream,
            ready_text: self.ready_text.clone(),
            events: self.events.clone(),
            log: self.log.clone(),
            last_lines: self.last_lines.clone(),
        }
    }
}

/// Takes what a component writes to one of its pipes.
struct Pump {
    index: usize,
    run: u32,
    stream: Stream,
    ready_text: Option<String>,
    events: Sender<Happened>,
    log: Sender<Item>,
    last_lines: LastLines,
}

impl Pump {
    async fn all_of(mut self, mut pipe: impl AsyncRead + Unpin) {
        let mut lines = Lines::default();
        let mut buffer = vec![0; READ_BYTES];
        // A pipe that cannot be read has nothing more to say.
        while let Ok(bytes @ 1..) = pipe.read(&mut buffer).await {
            for line in lines.feed(&buffer[..bytes]) {
                self.show(line).await;
            }
        }
        if let Some(line) = lines.finish() {
            self.show(line).await;
        }
    }

    async fn show(&mut self, text: String) {
        {
            let mut last = self.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() >= LAST_LINES {
                last.pop_front();
            }
            last.push_back(text.clone());
        }
        let says_ready = self.ready_text.as_ref().is_some_and(|ready| text.contains(ready.as_str()));
        // The log ends after everybody who writes to it.
        let _ = self.log.send(Item::Line(Entry { index: self.index, stream: self.stream, text })).await;
        if says_ready {
            self.ready_text = None;
            let happened = Happened { index: self.index, run: self.run, event: Event::Ready };
            // As above.
            let _ = self.events.send(happened).await;
        }
    }
}
