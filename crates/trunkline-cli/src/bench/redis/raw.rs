//! The raw side: what the client library does with plain commands, as one would write it for speed.

use std::time::Duration;

use ::redis::{Pipeline, Value, cmd};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;

use super::super::beside::{Load, Meter, Stamp, check_order, histogram, record, soon};
use super::super::error::BenchError;
use super::super::measure::Flow;
use super::redis_failed;
use super::server::Server;

/// What the built-in streams of the bus keep.
const KEPT: u64 = 100_000;
/// Messages of one pipeline that fills the stream before a run.
const FILL: u64 = 500;

fn append(pipeline: &mut Pipeline, key: &str, kept: Option<u64>, payload: &[u8]) {
    let command = pipeline.cmd("XADD").arg(key);
    if let Some(kept) = kept {
        command.arg("MAXLEN").arg("~").arg(kept);
    }
    command.arg("*").arg("m").arg(payload);
}

/// XADD in pipelines, two at a time, together as many messages as are to be in flight.
pub(super) async fn publish(load: &Load, server: &Server) -> Result<Flow, BenchError> {
    let connection = server.connect().await?;
    let key = format!("{}:raw", load.prefix);
    let stamp = Stamp::new();
    let each = (load.in_flight / 2).max(1) as u64;
    let meter = Meter::start(server).await?;
    let (mut sent, mut stored) = (0, 0);
    let mut under_way = FuturesUnordered::new();
    while stored < load.messages {
        while under_way.len() < 2 && sent < load.messages {
            let count = each.min(load.messages - sent);
            let mut pipeline = Pipeline::with_capacity(count as usize);
            for number in sent..sent + count {
                append(&mut pipeline, &key, Some(KEPT), &stamp.payload(number, load.payload_bytes));
            }
            sent += count;
            let mut connection = connection.clone();
            under_way.push(async move { pipeline.query_async::<Vec<String>>(&mut connection).await });
        }
        if let Some(ids) = soon(load, "publisher", under_way.next()).await? {
            stored += ids.map_err(redis_failed("append"))?.len() as u64;
        }
    }
    meter.stop(server, stored).await
}

/// XREADGROUP, in one pipeline with the XACK of the batch before.
pub(super) async fn consume(load: &Load, server: &Server) -> Result<Flow, BenchError> {
    let mut connection = server.connect().await?;
    let failed = redis_failed("read as a consumer");
    let key = format!("{}:raw", load.prefix);
    let stamp = Stamp::new();
    fill(load, &mut connection, &key, &stamp).await?;
    let () = cmd("XGROUP")
        .arg("CREATE")
        .arg(&key)
        .arg("g")
        .arg("0")
        .query_async(&mut connection)
        .await
        .map_err(&failed)?;
    let meter = Meter::start(server).await?;
    let (mut received, mut settled) = (0, 0);
    let mut ids: Vec<Vec<u8>> = Vec::new();
    while settled < load.messages {
        let mut pipeline = Pipeline::new();
        if !ids.is_empty() {
            pipeline.cmd("XACK").arg(&key).arg("g").arg(&ids);
        }
        pipeline.cmd("XREADGROUP").arg("GROUP").arg("g").arg("m");
        pipeline.arg("COUNT").arg(load.batch).arg("STREAMS").arg(&key).arg(">");
        let answers: Vec<Value> =
            soon(load, "consumer", pipeline.query_async(&mut connection)).await?.map_err(&failed)?;
        settled += ids.len() as u64;
        ids.clear();
        let Some(answer) = answers.into_iter().next_back() else { continue };
        for (id, payload) in entries(answer) {
            if let Some((number, _)) = stamp.read(&payload) {
                check_order(received, number)?;
                received += 1;
            }
            ids.push(id);
        }
    }
    meter.stop(server, settled).await
}

/// Ids and payloads of the entries that a read of one stream brought.
fn entries(answer: Value) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let streams = array(answer).into_iter();
    let found = streams.filter_map(|stream| array(stream).into_iter().nth(1)).flat_map(array);
    found.filter_map(|entry| {
        let mut parts = array(entry).into_iter();
        match (parts.next()?, array(parts.next()?).into_iter().nth(1)?) {
            (Value::BulkString(id), Value::BulkString(payload)) => Some((id, payload)),
            _ => None,
        }
    })
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

async fn fill(
    load: &Load,
    connection: &mut ::redis::aio::MultiplexedConnection,
    key: &str,
    stamp: &Stamp,
) -> Result<(), BenchError> {
    let mut sent = 0;
    while sent < load.messages {
        let count = FILL.min(load.messages - sent);
        let mut pipeline = Pipeline::with_capacity(count as usize);
        for number in sent..sent + count {
            append(&mut pipeline, key, None, &stamp.payload(number, load.payload_bytes));
        }
        sent += count;
        let _: Vec<String> = pipeline.query_async(connection).await.map_err(redis_failed("append"))?;
    }
    Ok(())
}

/// XADD to a loop of blocking XREAD, one message at a time.
pub(super) async fn latency(load: &Load, server: &Server) -> Result<Flow, BenchError> {
    let (mut writer, mut reader) = (server.connect().await?, server.connect().await?);
    let key = format!("{}:raw", load.prefix);
    let stamp = std::sync::Arc::new(Stamp::new());
    let (hear, mut hears) = mpsc::channel(1);
    let reading = tokio::spawn({
        let (key, stamp) = (key.clone(), stamp.clone());
        async move {
            let mut last = b"0-0".to_vec();
            loop {
                let mut command = cmd("XREAD");
                command.arg("COUNT").arg(256).arg("BLOCK").arg(5000).arg("STREAMS").arg(&key).arg(&last);
                let answer: Value = command.query_async(&mut reader).await?;
                for (id, payload) in entries(answer) {
                    last = id;
                    if let Some(heard_of) = stamp.read(&payload)
                        && hear.send(heard_of).await.is_err()
                    {
                        return Ok::<(), ::redis::RedisError>(());
                    }
                }
            }
        }
    });
    let messages = load.messages;
    let mut histogram = histogram();
    let meter = Meter::start(server).await?;
    for number in 0..messages {
        let payload = stamp.payload(number, load.payload_bytes);
        let mut command = cmd("XADD");
        command.arg(&key).arg("MAXLEN").arg("~").arg(KEPT).arg("*").arg("m").arg(&payload[..]);
        let _: String = soon(load, "publisher", command.query_async(&mut writer))
            .await?
            .map_err(redis_failed("append"))?;
        record(&mut histogram, heard(number, soon(load, "subscriber", hears.recv()).await?)?);
    }
    let flow = meter.stop(server, messages).await?;
    reading.abort();
    Ok(Flow { latency: Some(histogram), ..flow })
}

/// How old the message was that was to come next.
pub(super) fn heard(expected: u64, heard: Option<(u64, Duration)>) -> Result<Duration, BenchError> {
    let (number, age) = heard.ok_or(BenchError::Closed)?;
    check_order(expected, number).map(|()| age)
}
