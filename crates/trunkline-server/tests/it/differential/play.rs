//! Plays a conversation on a server. One step after the other, each ended by a PING: what is seen is then a matter of the
//! server and not of time.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::script::{Script, subscribed};
use super::seen::{Item, Seen, take};

/// After so many waits without a byte the server is taken to have nothing to say: 20 s, far longer than anything takes, and no
/// conversation that goes well waits for it. Counted in short waits, since a machine that stands still for a minute is no
/// silence: only one of them passes meanwhile.
const WAITS_MAX: usize = 80;
const WAIT: Duration = Duration::from_millis(250);

struct Player {
    stream: TcpStream,
    buffer: Vec<u8>,
    items: Vec<Item>,
    /// PONGs that were taken account of.
    pongs: usize,
    is_over: bool,
}

impl Player {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("a connected socket");
        let mut player = Self { stream, buffer: Vec::new(), items: Vec::new(), pongs: 0, is_over: false };
        while player.items.is_empty() && player.fill().await {}
        assert_eq!(player.items, [Item::Info], "the first thing that a server says");
        player.items.clear();
        player
    }

    /// Sends, in several writes if it is asked for, and waits for as many PONGs.
    async fn say(&mut self, bytes: &[u8], writes: &[usize], pings: usize) {
        if self.is_over {
            return;
        }
        let mut rest = bytes;
        let mut sizes = writes.iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(sizes.next().map_or(rest.len(), |size| rest.len().min(*size)));
            // A server that has seen enough may close while the rest is still being sent.
            if self.stream.write_all(now).await.is_err() {
                break;
            }
            rest = later;
            if !rest.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        let expected = self.pongs + pings;
        while self.items.iter().filter(|item| **item == Item::Pong).count() < expected {
            if !self.fill().await {
                return;
            }
        }
        self.pongs = expected;
    }

    /// Reads more; `false` when the conversation is over.
    async fn fill(&mut self) -> bool {
        let mut ended = Some(Item::Silence);
        for _ in 0..WAITS_MAX {
            // Reading can be broken off: what was read is in the buffer.
            ended = match tokio::time::timeout(WAIT, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(1..)) => None,
                Ok(_) => Some(Item::Closed),
                Err(_) => continue,
            };
            break;
        }
        take(&mut self.buffer, &mut self.items);
        self.is_over = ended.is_some();
        self.items.extend(ended);
        !self.is_over
    }
}

/// What everybody saw.
pub(crate) async fn play(script: &Script, address: SocketAddr) -> Seen {
    let mut players = Vec::new();
    for hello in &script.clients {
        let mut player = Player::connect(address).await;
        if let Some(connect) = &hello.connect {
            player.say(format!("{connect}PING\r\n").as_bytes(), &[], 1).await;
        }
        players.push(player);
    }
    for step in &script.steps {
        let mut bytes = step.operations.concat();
        bytes.extend_from_slice(b"PING\r\n");
        players[step.client].say(&bytes, &step.writes, step.pings() + 1).await;
    }
    let together = players.iter_mut().zip(&script.at_once).map(|(player, step)| async move {
        let mut bytes = step.operations.concat();
        bytes.extend_from_slice(b"PING\r\n");
        player.say(&bytes, &step.writes, 1).await;
    });
    futures_util::future::join_all(together).await;
    // What is still on its way to the others comes before the PONG; and nothing is left for who comes next.
    let sids = script.steps.iter().flat_map(|step| &step.operations);
    let sids =
        sids.filter(|operation| operation.ends_with(b"\r\n")).filter_map(|operation| subscribed(operation));
    let mut farewell = b"PING\r\n".to_vec();
    sids.for_each(|sid| farewell.extend_from_slice(format!("UNSUB {sid}\r\n").as_bytes()));
    farewell.extend_from_slice(b"PING\r\n");
    for player in &mut players {
        player.say(&farewell, &[], 2).await;
    }
    Seen::new(players.into_iter().map(|player| player.items).collect())
}
