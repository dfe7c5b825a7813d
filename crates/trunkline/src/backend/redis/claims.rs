//! Claiming, for all queue groups of one stream, what their members are given.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::entry::{EntryId, array, entries, list, parse_id, print_id, text, unexpected};
use super::groups::{CLAIM_MEMORY, Claim, Claimed, Group, Unseen};
use super::link::Failure;
use super::routes::millis;
use super::scripts::{CLAIM, GROUP_SWEEP};
use super::shared::Shared;
use super::track::Track;

/// Most groups of one script: while it runs the server does nothing else.
const CLAIMS_MAX: usize = 256;
/// How often the cursors of groups that have nothing to claim are moved on: so much of the stream another process has to
/// look through at most when this one dies.
const IDLE_INTERVAL: Duration = Duration::from_secs(2);
/// Entries of one page of what was not seen here.
const PAGE: usize = 256;
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// How often groups and members that are gone are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Claims what the groups of `track` hold, until it ends.
pub(super) async fn run(track: Arc<Track>, shared: Arc<Shared>) {
    tokio::select! {
        () = track.ended.cancelled() => {}
        () = claim_all(&track, &shared) => {}
    }
}

async fn claim_all(track: &Track, shared: &Shared) {
    let mut idle_at = Instant::now() + IDLE_INTERVAL;
    let (mut look_at, mut sweep_at) = (idle_at, idle_at);
    // Groups that are to be looked at again, by name.
    let mut later: HashMap<String, Arc<Group>> = HashMap::new();
    loop {
        tokio::select! {
            () = track.claim.notified() => {}
            () = tokio::time::sleep_until(look_at) => {}
        }
        let mut idle = Instant::now() >= idle_at;
        if idle {
            idle_at = Instant::now() + IDLE_INTERVAL;
        }
        loop {
            let (touched, read) = track.groups_to_claim(idle);
            later.extend(touched.into_iter().map(|group| (group.name.clone(), group)));
            let now = Instant::now();
            look_at = idle_at;
            let mut claims = Vec::new();
            later.retain(|_, group| match group.wants(read, idle, now) {
                _ if claims.len() == CLAIMS_MAX => true,
                Ok(claim) => {
                    claims.push(claim);
                    true
                }
                Err(Some(wait)) => {
                    look_at = look_at.min(now + wait);
                    true
                }
                Err(None) => false,
            });
            if claims.is_empty() {
                break;
            }
            idle = false;
            if let Err(failure) = claim(track, shared, claims).await {
                tracing::debug!(stream = track.home().name, ?failure, "claims are tried again");
                // Only a link that is closed for good has no next connection.
                if shared.link.connected(&track.home().key).await.is_none() {
                    return;
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
        if Instant::now() >= sweep_at {
            sweep_at = Instant::now() + SWEEP_INTERVAL;
            if let Err(failure) = sweep(track, shared).await {
                tracing::debug!(
                    stream = track.home().name,
                    ?failure,
                    "groups that are gone are not looked for"
                );
            }
        }
    }
}

/// Has the server forget the groups and members of which nothing was heard for long.
async fn sweep(track: &Track, shared: &Shared) -> Result<(), Failure> {
    let home = track.home();
    let known = shared.link.query(&home.key, redis::cmd("HKEYS").arg(home.beside("queues"))).await?;
    let names: Vec<String> = list(known)?.iter().map(text).collect::<Result<_, _>>()?;
    for names in names.chunks(CLAIMS_MAX) {
        let mut keys = shared.keys_of(home, &["queues"], &[], "");
        if keys.len() > 1 {
            // A name is that of a group, or of a group and a member.
            let groups = names.iter().map(|name| name.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" "));
            let members = groups.map(|group| home.of_consumer("queue", &group));
            keys.extend(members.collect::<BTreeSet<_>>());
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let sweeping = shared.link.run_script(&GROUP_SWEEP, &keys, |command| {
            command.arg(millis(CLAIM_MEMORY)).arg(names);
        });
        sweeping.await?;
    }
    Ok(())
}

async fn claim(track: &Track, shared: &Shared, claims: Vec<Claim>) -> Result<(), Failure> {
    let home = track.home();
    let mut keys = shared.keys_of(home, &["queues"], &[], "");
    if keys.len() > 1 {
        keys.extend(claims.iter().map(|claim| home.of_consumer("queue", &claim.group.name)));
    }
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let claiming = shared.link.run_script(&CLAIM, &keys, |command| {
        for claim in &claims {
            let first = claim.first.map_or_else(String::new, print_id);
            command.arg(&claim.group.name).arg(&claim.group.member).arg(print_id(claim.upto)).arg(first);
        }
    });
    let answers = list(claiming.await?)?;
    for (claim, answer) in claims.into_iter().zip(answers) {
        let [word, id] = array::<2>(answer)?;
        let answer = claimed(&text(&word)?, &id)?;
        if answer == Claimed::Lost {
            tracing::warn!(
                group = claim.group.name,
                stream = track.home().name,
                "the server has lost the queue group; it is made again"
            );
        }
        if let Some(unseen) = claim.group.claimed(&claim, answer, Instant::now()) {
            give_unseen(track, shared, &claim.group, &unseen).await;
        }
    }
    Ok(())
}

fn claimed(word: &str, id: &Value) -> Result<Claimed, Failure> {
    let id = || parse_id(&text(id)?).ok_or_else(|| unexpected(id));
    match word {
        "AFTER" => Ok(Claimed::After(id()?)),
        "TAKEN" => Ok(Claimed::Taken(id()?)),
        "WAIT" => Ok(Claimed::Wait),
        "LOST" => Ok(Claimed::Lost),
        other => Err(Failure::Unexpected(other.to_owned())),
    }
}

/// Reads what a claim brought and this process has not seen: another one died, or fell behind, before it claimed it.
async fn give_unseen(track: &Track, shared: &Shared, group: &Group, unseen: &Unseen) {
    let mut after = unseen.after;
    loop {
        match read_page(track, shared, after, unseen.to).await {
            Ok(page) => {
                let whole = page.len() < PAGE;
                after = page.last().map_or(after, |(id, _)| *id);
                let messages = page.into_iter().filter_map(|(id, message)| Some((id, message?)));
                group.give_unseen(unseen, messages.collect(), whole);
                if whole {
                    return;
                }
            }
            Err(failure) => {
                tracing::debug!(group = group.name, ?failure, "what was not seen is read again");
                if shared.link.connected(&track.home().key).await.is_none() {
                    return;
                }
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

type Page = Vec<(EntryId, Option<Arc<trunkline_core::Message>>)>;

async fn read_page(track: &Track, shared: &Shared, after: EntryId, to: EntryId) -> Result<Page, Failure> {
    // Ranges without their first element came with Redis 6.2.
    let from = match after.1.checked_add(1) {
        Some(number) => (after.0, number),
        None => (after.0 + 1, 0),
    };
    let mut command = redis::cmd("XRANGE");
    command.arg(&track.home().key).arg(print_id(from)).arg(print_id(to)).arg("COUNT").arg(PAGE);
    let found = entries(shared.link.query(&track.home().key, &command).await?)?;
    Ok(found.into_iter().map(|entry| (entry.id, entry.message.ok())).collect())
}
