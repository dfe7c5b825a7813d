//! Settings that change nothing with the backend that is configured.

use crate::backend::BackendKind;
use crate::config::{Config, RedisTopology};

impl Config {
    /// What is set and changes nothing with this backend, so that nobody relies on it: the keys, and why.
    /// [`Bus::connect`](crate::Bus::connect) logs it.
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        let default = Config::default();
        let (messaging, backend) = (&self.messaging, self.messaging.backend);
        let copies = messaging.streams.iter().any(|stream| stream.replicas > 1);
        let all = [
            (
                messaging.outbox && backend == BackendKind::InMemory,
                "messaging.outbox",
                "in this process there is no server that could be away",
            ),
            (
                messaging.stream_prefix != default.messaging.stream_prefix
                    && backend == BackendKind::InMemory,
                "messaging.stream_prefix",
                "only the names of Redis keys and of JetStream streams have it",
            ),
            (
                messaging.redis_tls != default.messaging.redis_tls && !messaging.redis_url.tls,
                "messaging.redis_tls",
                "messaging.redis_url asks for no TLS: rediss:// does",
            ),
            (
                messaging.redis_sentinel != default.messaging.redis_sentinel
                    && !matches!(messaging.redis_url.topology, RedisTopology::Sentinel { .. }),
                "messaging.redis_sentinel",
                "messaging.redis_url names no sentinels: redis-sentinel:// does",
            ),
            (
                messaging.nats_auth != default.messaging.nats_auth && messaging.nats_url.has_credentials(),
                "messaging.nats_auth",
                "messaging.nats_url has credentials, which go first",
            ),
            (
                copies && backend != BackendKind::Nats,
                "messaging.streams[].replicas",
                "only JetStream keeps copies",
            ),
        ];
        all.into_iter().filter(|(set, ..)| *set).map(|(_, key, reason)| (key, reason)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;

    #[test]
    fn what_has_no_effect_is_named() {
        let named =
            |yaml: &str| config(yaml).without_effect().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert!(named("messaging: {backend: nats}").is_empty());
        assert!(
            named("messaging: {backend: redis, stream_prefix: mine}").is_empty(),
            "the fallback is loud by itself"
        );
        let files = "redis_tls: {ca_file: ca.pem}, redis_sentinel: {password: pw}";
        assert_eq!(
            named(&format!("messaging: {{backend: redis, {files}}}")),
            ["messaging.redis_tls", "messaging.redis_sentinel"]
        );
        let url = "redis_url: 'rediss-sentinel://a/main'";
        assert!(named(&format!("messaging: {{backend: redis, {url}, {files}}}")).is_empty());
        let both = "nats_auth: {token: t}, nats_url: 'nats://u:p@h'";
        assert_eq!(named(&format!("messaging: {{backend: nats, {both}}}")), ["messaging.nats_auth"]);
        let streams = "streams: [{name: a, subjects: [a], replicas: 3}]";
        assert_eq!(
            named(&format!(
                "{{messaging: {{outbox: on, stream_prefix: mine, {streams}}}, runtime: {{resources: {{memory: 1GB}}}}}}"
            )),
            ["messaging.outbox", "messaging.stream_prefix", "messaging.streams[].replicas"]
        );
    }
}
