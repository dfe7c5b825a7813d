//! Components in Rust, Python and JavaScript hold conversations over Redis, in every combination: the stock clients are on a
//! bridge, those in Rust on the Redis itself.

use std::sync::Arc;

use trunkline::backend::redis::{RedisBackend, RedisOptions};
use trunkline::config::RedisUrl;
use trunkline::{Bus, BusOptions};
use trunkline_testkit::{RedisServer, check_conversations};

use super::Bridge;

#[test]
fn components_on_redis_hold_conversations_with_those_on_a_bridge() {
    let redis = RedisServer::start_volatile();
    let bridge = Bridge::start(&redis);
    let url = RedisUrl::parse(redis.url()).expect("a server process has a valid URL");
    check_conversations(bridge.url(), |part| {
        let redis = RedisOptions::new(url.clone());
        Box::pin(async move {
            let backend = RedisBackend::connect(redis).await.expect("the server is up");
            let options = BusOptions { source: part.to_owned(), ..BusOptions::default() };
            Bus::with_backend(Arc::new(backend), options)
        })
    });
    crate::observed::check(&bridge, false);
}
