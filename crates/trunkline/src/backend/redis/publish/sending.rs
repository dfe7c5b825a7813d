//! Batches on their way: sent to a server, followed to another, waited for by replicas; what comes of it are answers, for
//! others to read. No state, and nobody is told anything here.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use redis::Value;

use super::super::entry::number;
use super::super::link::{Current, Failure, Ran, is_unknown_script};
use super::super::routes::millis;
use super::super::shared::Shared;
use super::super::slots::Redirect;
use super::batch::{Batch, Broken, Known};
use crate::backend::Fut;

/// The telling answer to each batch of one flight, and how many replicas have it where that was asked.
pub(super) struct Answer {
    pub(super) answer: Result<Value, Broken>,
    pub(super) replicas: Option<u64>,
}

pub(super) type Answers = Vec<Answer>;

/// Sends to one server what is stored there.
pub(super) fn send_to(
    shared: &Arc<Shared>,
    mut current: Current,
    known: Known,
    batches: &[Batch],
    soonest: Instant,
) -> Fut<'static, Answers> {
    let mut pipeline = redis::Pipeline::new();
    let quiet = batches.iter().any(|batch| batch.quiet);
    let counts: Vec<usize> = batches.iter().map(|batch| batch.add_to(&mut pipeline, shared, known)).collect();
    let waits = shared.options.wait_replicas > 0;
    if waits {
        pipeline.add_command(waiting(shared, soonest));
    }
    let expected = counts.iter().sum::<usize>() + usize::from(waits);
    let scripts: Vec<u8> = batches.iter().map(Batch::scripts).collect();
    let shared = shared.clone();
    Box::pin(async move {
        let answer = tokio::select! {
            answer = current.connection.send_all(&pipeline, expected) => answer,
            () = current.lost.cancelled() => Err(redis::RedisError::from((redis::ErrorKind::Io, "lost"))),
        };
        let link = &shared.link;
        // Were a quiet connection not quiet, the answers to come would be those to other commands.
        let unheard =
            |values: &Vec<Value>| quiet && values.iter().step_by(2).any(|value| *value != Value::Okay);
        let Some(mut values) = answer.ok().filter(|values| !unheard(values)) else {
            link.suspect();
            if waits || quiet {
                current.lost.cancel();
            }
            return counts.iter().map(|_| Answer { answer: Err(Broken::Unknown), replicas: None }).collect();
        };
        let replicas = waits.then(|| values.pop()).flatten().map(|answer| number(&answer).unwrap_or(0));
        let mut values = values.into_iter();
        let answers = counts.into_iter().zip(scripts).map(|(count, scripts)| {
            let answer = match values.nth(count - 1) {
                Some(Value::ServerError(error))
                    if is_unknown_script(&error) || link.redirected(&error, &current.address).is_some() =>
                {
                    Err(Broken::Redirected(error))
                }
                Some(answer) => {
                    current.ran.add(scripts);
                    Ok(answer)
                }
                None => Err(Broken::Unknown),
            };
            Answer { answer, replicas }
        });
        answers.collect()
    })
}

/// Sends what is stored on one server and follows it to another, with the next batch behind it only when all of this
/// one has an answer.
pub(super) fn follow(
    shared: &Arc<Shared>,
    current: Current,
    known: Known,
    batches: &[Batch],
    soonest: Instant,
) -> Fut<'static, Answers> {
    let sending = batches.iter().map(|batch| {
        let ((script, command), key) = (batch.script(shared, known), batch.home.key.clone());
        let (shared, current) = (shared.clone(), current.clone());
        async move {
            if shared.options.wait_replicas > 0 {
                return append_and_wait(&shared, current, &script.in_full(&command), soonest).await;
            }
            let answer = shared.link.query_script(&key, script, &command).await;
            let answer = answer.map_err(|failure| match failure {
                Failure::NotConnected(_) => Broken::NotSent,
                Failure::Refused(error) => Broken::Refused(error),
                Failure::Unknown(_) | Failure::Unexpected(_) => Broken::Unknown,
            });
            Answer { answer, replicas: None }
        }
    });
    Box::pin(join_all(sending.collect::<Vec<_>>()))
}

/// The answers to batches for which there is no connection.
pub(super) fn not_sent(count: usize) -> Fut<'static, Answers> {
    let answer = || Answer { answer: Err(Broken::NotSent), replicas: None };
    Box::pin(std::future::ready(std::iter::repeat_with(answer).take(count).collect()))
}

/// The command that waits for replicas: its answer comes before the time of those who wait for it is over.
fn waiting(shared: &Shared, soonest: Instant) -> redis::Cmd {
    let patience = soonest.saturating_duration_since(Instant::now()) / 2;
    let mut command = redis::cmd("WAIT");
    command.arg(shared.options.wait_replicas).arg(millis(patience).max(1));
    command
}

/// Appends, then waits for replicas on the connection that has written. What is on its way to another node is appended
/// there, on a connection for this alone, since its server carries out nothing else on it meanwhile.
async fn append_and_wait(
    shared: &Shared,
    mut current: Current,
    append: &redis::Cmd,
    soonest: Instant,
) -> Answer {
    let link = &shared.link;
    let broken = |broken| Answer { answer: Err(broken), replicas: None };
    let mut asking = false;
    let stored = loop {
        let appending = tokio::time::timeout(link.answer_timeout, current.connection.send(append, asking));
        let error = match appending.await {
            Ok(Ok(Value::ServerError(error))) => error,
            Ok(Ok(stored)) => break stored,
            Ok(Err(_)) | Err(_) => {
                link.suspect();
                current.lost.cancel();
                return broken(Broken::Unknown);
            }
        };
        match link.redirected(&error, &current.address) {
            None => return Answer { answer: Ok(Value::ServerError(error)), replicas: None },
            Some(Redirect::Ask(address)) if !asking => {
                let Ok(connection) = link.connector.open(&address).await else {
                    return broken(Broken::Redirected(error));
                };
                let lost = current.lost.child_token();
                (current, asking) = (Current { address, connection, lost, ran: Ran::default() }, true);
            }
            Some(_) => {
                link.changed(tokio::time::Instant::now() + link.answer_timeout).await;
                return broken(Broken::Redirected(error));
            }
        }
    };
    let command = waiting(shared, soonest);
    let waited = current.connection.send(&command, false);
    let replicas = match tokio::time::timeout(link.answer_timeout, waited).await {
        Ok(Ok(answer)) => number(&answer).unwrap_or(0),
        // It is stored; that replicas have it, nobody says.
        Ok(Err(_)) | Err(_) => {
            link.suspect();
            current.lost.cancel();
            0
        }
    };
    Answer { answer: Ok(stored), replicas: Some(replicas) }
}
