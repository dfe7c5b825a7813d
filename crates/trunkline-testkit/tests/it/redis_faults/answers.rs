//! Answers that are none: what the server says is not the protocol, or not the answer to what was asked.

use std::time::Duration;

use trunkline::backend::Settle;
use trunkline_testkit::RedisServer;

use super::{
    back, connect, connect_through, ensure, fetch, join, next, payloads, proxy, publish_again, soon, stored,
    subscribe,
};

/// Bytes that are no protocol, or an answer to nobody's question, on every connection: each is given up, and all goes
/// on without loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_costs_a_connection_and_no_message() {
    let server = RedisServer::start();
    let proxy = proxy(&server).await;
    let (direct, through) = (connect(&server).await, connect_through(&proxy).await);
    ensure(&direct, None).await;
    let mut source = subscribe(&through, None).await;
    let member = join(&through, Duration::from_millis(300)).await;
    // Whether a connection has to go. What can be read as an answer is thrown away where nothing was asked, and a read
    // that gets it reads again from where it was.
    let garbage: [(&[u8], bool); 8] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", true),
        (b"\0\xff\xfe\x01garbage", true),
        (b"$-5\r\n", false),
        (b"$99999999999999999999\r\n", true),
        (b"*1000000000\r\n*1000000000\r\n", true),
        (b"-ERR nobody asked\r\n", true),
        (b"+OK\r\n", true),
        (b"*2\r\n$3\r\nfoo\r\n:7\r\n", true),
    ];
    for (n, (bytes, reconnects)) in garbage.into_iter().enumerate() {
        println!("injecting {:?}", String::from_utf8_lossy(bytes));
        let accepted = proxy.connections_accepted();
        proxy.inject_answer(bytes);
        if reconnects {
            // The longest takes a read that blocks, and its grace.
            soon(proxy.wait_for_accepted(accepted + 1)).await;
        }
        back(&through).await;
        publish_again(&through, n).await;
        while next(&mut *source).await != n.to_string() {}
        // A settlement that got the wrong answer is made again, when the message comes again.
        loop {
            let got = fetch(&*member, 10).await;
            let batch = got.iter().map(|delivery| (delivery.token.clone(), Settle::Ack)).collect();
            match soon(member.settle(batch)).await {
                Ok(_) if payloads(&got).contains(&n.to_string()) => break,
                Ok(_) => {}
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
        }
    }
    assert!(stored(&direct).await.len() >= garbage.len());
}
