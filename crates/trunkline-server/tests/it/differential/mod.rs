//! The same conversations, drawn at random, with nats-server and here: what every client sees is the same.
//!
//! Several connections with options of all kinds subscribe, unsubscribe, publish and send what is malformed, in writes of
//! any size, step by step; in some conversations everybody publishes at the same time in the end. Compared is everything that
//! each of them is sent, in order; of queue groups, that exactly one member got the message; of what was published at the
//! same time, the order of each publisher. A seed that fails is printed together with the shortest conversation in which the
//! servers still differ. Where they are meant to differ is written down in [`differences`], each with its reason and a proof.

mod differences;
mod introductions;
mod play;
mod script;
mod seen;
mod upgrades;
mod world;

use std::time::Instant;

use trunkline_testkit::seeds::seeds;

use self::differences::Version;
use self::play::play;
use self::script::{Author, Script};
pub(crate) use self::upgrades::web_address;
use self::world::{ACCOUNTS, OPEN, PERMISSIONS, Pair, World};

/// Plays a conversation on both servers.
async fn difference(script: &Script, pair: &Pair, version: Version) -> Option<String> {
    let started = Instant::now();
    let theirs = differences::known(play(script, pair.their_address()).await, version);
    let on_theirs = started.elapsed();
    let ours = differences::known(play(script, pair.ours.nats_addr()).await, version);
    let on_ours = started.elapsed() - on_theirs;
    // How long it took shows whether the machine stood still meanwhile.
    ours.difference(&theirs).map(|found| format!("in {on_theirs:?} there and {on_ours:?} here: {found}"))
}

/// Leaves out steps and operations as long as the servers still differ.
async fn shortened(mut script: Script, pair: &Pair, version: Version) -> Script {
    let quiet = Script { at_once: Vec::new(), ..script.clone() };
    if difference(&quiet, pair, version).await.is_some() {
        script = quiet;
    }
    let mut size = script.steps.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < script.steps.len() {
            let mut shorter = script.clone();
            shorter.steps.drain(at..(at + size).min(script.steps.len()));
            match difference(&shorter, pair, version).await {
                Some(_) => script = shorter,
                None => at += size,
            }
        }
        size /= 2;
    }
    for step in 0..script.steps.len() {
        let mut at = 0;
        while at < script.steps[step].operations.len() {
            let mut shorter = script.clone();
            shorter.steps[step].operations.remove(at);
            match difference(&shorter, pair, version).await {
                Some(_) => script = shorter,
                None => at += 1,
            }
        }
    }
    script
}

async fn check(world: &World, version: Version, usual: u64) {
    let pair = world.start(version).await;
    for seed in seeds(usual) {
        let script = Author::new(seed, world).script();
        let Some(found) = difference(&script, &pair, version).await else { continue };
        let shorter = shortened(script.clone(), &pair, version).await;
        match difference(&shorter, &pair, version).await {
            Some(again) => panic!("seed {seed}\n{shorter}\n{again}"),
            // A message that was lost once is lost, whether or not it is lost again.
            None => panic!("seed {seed}, and not each time\n{script}\n{found}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_what_they_would_see_on_nats_server() {
    check(&OPEN, Version::Newest, 150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_what_they_would_see_on_nats_server_2_9() {
    check(&OPEN, Version::Debian, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_with_permissions_see_what_they_would_see_on_nats_server() {
    check(&PERMISSIONS, Version::Newest, 150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_accounts_see_what_they_would_see_on_nats_server() {
    check(&ACCOUNTS, Version::Newest, 60).await;
}
