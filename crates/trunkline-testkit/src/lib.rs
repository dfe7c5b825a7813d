//! What the tests of Trunkline stand on: real servers as child processes, stock clients in other
//! languages, a proxy that breaks connections on request, and the conformance suite of all backends.
//!
//! Everything here serves tests, so what goes wrong panics with the whole story instead of
//! returning an error: the caller is a test, and its reader wants the log of the server, not a
//! value to match on. No protocol and no delivery logic lives here.

pub mod behaviours;
pub mod certificates;
pub mod clients;
pub mod conformance;
pub mod conversation;
pub mod environment;
pub mod faulty;
pub mod history;
pub mod nats_cluster;
pub mod nats_operator;
pub mod process;
pub mod redis_cluster;
pub mod redis_log;
pub mod redis_sentinels;
pub mod redis_server;
pub mod redis_version;
pub mod seeds;
pub mod servers;
pub mod spans;
pub mod tcp_proxy;
pub mod unusable_redis;

pub use behaviours::BehaviourProgram;
pub use certificates::Authority;
pub use clients::{ClientLibrary, ScenarioRun};
pub use conversation::check_conversations;
pub use nats_cluster::NatsCluster;
pub use nats_operator::NatsOperator;
pub use process::ServerProcess;
pub use redis_cluster::RedisCluster;
pub use redis_sentinels::RedisSentinels;
pub use redis_server::RedisServer;
pub use redis_version::{NoTls, RedisVersion};
pub use servers::{NatsServer, TrunklineServer};
pub use tcp_proxy::TcpProxy;
pub use unusable_redis::{UnusableRedis, unusable_redis};
