//! The `redis` backend keeps every guarantee of its column on real servers with an append-only file, from the oldest
//! that is supported to the newest.

/// The whole suite against each version, in a module of its own.
macro_rules! conforms_on {
    ($($module:ident: $version:ident;)*) => {$(
        mod $module {
            use trunkline_testkit::conformance::process::redis;
            use trunkline_testkit::{RedisServer, RedisVersion};

            trunkline_testkit::conformance!(redis(RedisServer::start_durable(RedisVersion::$version)));
        }
    )*};
}

conforms_on! {
    redis_6_0: Redis60;
    redis_6_2: Redis62;
    redis_of_the_system: System;
    redis_8: Redis8;
    valkey: Valkey;
}
