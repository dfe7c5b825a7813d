use super::*;
use crate::subject::Subject;
use proptest::prelude::*;

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}

fn sorted(mut targets: Vec<u32>) -> Vec<u32> {
    targets.sort_unstable();
    targets
}

#[test]
fn literal_and_wildcard_patterns_all_match() {
    let router = Router::new();
    for (n, p) in ["a.b", "a.*", "*.b", "a.>", ">", "a.b.c", "*"].into_iter().enumerate() {
        router.insert(&pattern(p), Role::Subscriber, n as u32);
    }
    let mut cache = MatchCache::default();
    assert_eq!(sorted(router.lookup(&mut cache, b"a.b").subscribers.clone()), [0, 1, 2, 3, 4]);
    assert_eq!(sorted(router.lookup(&mut cache, b"a").subscribers.clone()), [4, 6]);
    assert_eq!(sorted(router.matches(b"a.b.c").subscribers.clone()), [3, 4, 5]);
}

#[test]
fn queue_groups_merge_across_patterns_and_stores_and_taps_do_not_listen() {
    let router = Router::new();
    router.insert(&pattern("a.*"), Role::QueueMember("q".into()), 1u32);
    router.insert(&pattern("a.b"), Role::QueueMember("q".into()), 2);
    router.insert(&pattern("a.b"), Role::QueueMember("other".into()), 3);
    router.insert(&pattern("c"), Role::Store, 4);
    router.insert(&pattern(">"), Role::Tap, 5);
    let set = router.matches(b"a.b");
    assert_eq!(set.queues.len(), 2);
    let q = set.queues.iter().find(|queue| queue.group == "q").unwrap();
    assert_eq!(sorted(q.members.clone()), [1, 2]);
    assert_eq!(router.stats().subscriptions, 3, "stores and taps are no subscriptions");
    assert_eq!((router.stats().fanout_max, router.stats().fanout_total), (2, 2));
    let set = router.matches(b"c");
    assert!(set.nobody_listens() && !set.is_empty());
    assert_eq!((set.stores.as_slice(), set.taps.as_slice()), (&[4][..], &[5][..]));
}

#[test]
fn a_change_is_seen_by_the_next_lookup_and_leaves_other_first_tokens_cached() {
    let router = Router::new();
    let mut cache = MatchCache::default();
    assert!(router.lookup(&mut cache, b"a.b").is_empty());
    assert!(router.lookup(&mut cache, b"other").is_empty());
    let id = router.insert(&pattern("a.*"), Role::Subscriber, 1u32);
    assert_eq!(router.lookup(&mut cache, b"a.b").subscribers, [1]);
    let before = router.stats().matches;
    router.lookup(&mut cache, b"other");
    assert_eq!(router.stats().matches, before, "the answer for another first token stayed valid");
    assert!(router.remove(&pattern("a.*"), id));
    assert!(!router.remove(&pattern("a.*"), id));
    assert!(router.lookup(&mut cache, b"a.b").is_empty());
    assert_eq!(router.stats().subscriptions, 0);
}

#[test]
fn caches_are_bounded() {
    let router = Router::new();
    router.insert(&pattern(">"), Role::Subscriber, 1u32);
    let mut cache = MatchCache::default();
    for n in 0..100_000u32 {
        assert_eq!(router.lookup(&mut cache, format!("s.{n}").as_bytes()).subscribers, [1]);
    }
    assert!(router.stats().cached <= 16 * 1024);
    assert!(format!("{cache:?}").contains("subjects"));
}

fn token() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("c")]
}

fn any_pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof![3 => token(), 1 => Just("*")];
    (prop::collection::vec(part, 1..4), any::<bool>())
        .prop_map(|(tokens, tail)| tokens.join(".") + if tail { ".>" } else { "" })
}

proptest! {
    #[test]
    fn the_router_agrees_with_matching_one_by_one(
        operations in prop::collection::vec((any_pattern(), any::<bool>()), 1..40),
        subjects in prop::collection::vec(prop::collection::vec(token(), 1..5), 1..10),
    ) {
        let router = Router::new();
        let mut cache = MatchCache::default();
        let mut live: Vec<(Pattern, SubscriptionId, u32)> = Vec::new();
        for (n, (text, remove)) in operations.into_iter().enumerate() {
            if remove && !live.is_empty() {
                let (p, id, _) = live.swap_remove(n % live.len());
                prop_assert!(router.remove(&p, id));
            } else {
                let p = pattern(&text);
                let id = router.insert(&p, Role::Subscriber, n as u32);
                live.push((p, id, n as u32));
            }
            for tokens in &subjects {
                let subject = Subject::new(tokens.join(".")).unwrap();
                let expected = live.iter().filter(|(p, ..)| p.matches(&subject)).map(|(.., n)| *n).collect();
                let found = router.lookup(&mut cache, subject.as_bytes()).subscribers.clone();
                prop_assert_eq!(sorted(found), sorted(expected));
            }
        }
    }
}

/// What takes a fraction of a second, and took minutes when everybody looked at everybody else.
const SOON: std::time::Duration = std::time::Duration::from_secs(20);

#[test]
fn two_hundred_thousand_listeners_of_one_subject_leave_in_any_order() {
    let started = std::time::Instant::now();
    let (router, p) = (Router::new(), pattern("a.b"));
    let mut ids: Vec<_> = (0..200_000).map(|n| router.insert(&p, Role::Subscriber, n)).collect();
    shuffle(&mut ids);
    for (n, id) in ids.iter().enumerate() {
        assert!(router.remove(&p, *id));
        assert!(!router.remove(&p, *id));
        if n == 150_000 {
            assert_eq!(router.matches(b"a.b").subscribers.len(), 200_000 - n - 1);
        }
    }
    assert!(router.matches(b"a.b").is_empty());
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

/// The same order each time, and none that a list would like.
fn shuffle<X>(items: &mut [X]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for n in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        items.swap(n, (state >> 33) as usize % (n + 1));
    }
}

fn sorted_pair(members: &[i32]) -> [i32; 2] {
    let [a, b] = members[..] else { panic!("{members:?}") };
    [a.min(b), a.max(b)]
}

#[test]
fn a_hundred_thousand_queue_groups_of_one_subject_are_told_apart() {
    let started = std::time::Instant::now();
    let (router, p) = (Router::new(), pattern("a.b"));
    for member in 0..2 {
        for n in 0..100_000 {
            router.insert(&p, Role::QueueMember(format!("q{n}").into()), n * 2 + member);
        }
    }
    let set = router.matches(b"a.b");
    assert_eq!(set.queues.len(), 100_000);
    for queue in &set.queues {
        let [first, second] = sorted_pair(&queue.members);
        assert_eq!((first % 2, second), (0, first + 1));
        assert_eq!(queue.group, format!("q{}", first / 2));
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[test]
fn caches_are_bounded_by_what_their_answers_lead_to() {
    let router = Router::new();
    let everything = pattern(">");
    for n in 0..10_000 {
        router.insert(&everything, Role::Subscriber, n);
    }
    let mut cache = MatchCache::default();
    for n in 0..200 {
        assert_eq!(router.lookup(&mut cache, format!("a.{n}").as_bytes()).subscribers.len(), 10_000);
        assert!(cache.targets() <= 30_000, "{} targets kept by a publisher", cache.targets());
    }
    let kept = router.stats().cached_targets;
    assert!((10_000..=16 * (64 << 10)).contains(&kept), "{kept} targets kept for all");
    cache.trim();
    assert!(cache.targets() <= 16 << 10, "{} targets kept by a publisher that pauses", cache.targets());
}

#[test]
fn nobody_gets_what_has_an_empty_token() {
    let router = Router::new();
    for (n, p) in ["a.*.b", "a.>", "a.*", ">", "*.a"].into_iter().enumerate() {
        router.insert(&pattern(p), Role::Subscriber, n);
    }
    for subject in ["a..b", "a.", ".a", "", "."] {
        assert!(router.matches(subject.as_bytes()).is_empty(), "{subject:?}");
    }
    assert_eq!(router.matches(b"a.b").subscribers.len(), 3);
}

#[test]
fn a_verdict_is_asked_for_once_and_stays_when_the_table_changes() {
    let router = Router::new();
    let (mut cache, mut asked) = (MatchCache::default(), 0);
    let mut look = |cache: &mut MatchCache<u32>, subject: &str, verdict| {
        let judge = || {
            asked += 1;
            verdict
        };
        let (set, verdict) = router.lookup_judged(cache, subject.as_bytes(), judge);
        (set.subscribers.len(), verdict, asked)
    };
    assert_eq!(look(&mut cache, "a.b", false), (0, false, 1));
    router.insert(&pattern("a.*"), Role::Subscriber, 1);
    assert_eq!(look(&mut cache, "a.b", true), (1, false, 1), "another answer, the same verdict");
    assert_eq!(look(&mut cache, "a.c", true), (1, true, 2));
    cache.clear();
    assert_eq!(look(&mut cache, "a.b", true), (1, true, 3));
    // A lookup that asks for no verdict leaves room for one.
    assert_eq!(router.lookup(&mut cache, b"a.d").subscribers.len(), 1);
    assert_eq!(look(&mut cache, "a.d", false), (1, false, 4));
}

#[test]
fn the_memory_of_the_table_goes_with_what_is_in_it() {
    let router = Router::new();
    assert_eq!(router.held_bytes(), 0);
    let patterns: Vec<Pattern> = (0..1000)
        .map(|n| match n % 4 {
            0 => pattern(&format!("a.{n}.b")),
            1 => pattern(&format!("a.*.{n}")),
            2 => pattern(&format!("a.{}.>", n / 100)),
            _ => pattern("a.b"),
        })
        .collect();
    let ids: Vec<_> = patterns.iter().map(|p| router.insert(p, Role::Subscriber, 1_u32)).collect();
    let full = router.held_bytes();
    assert!(full > 300_000, "{full}");
    let deep = pattern(&format!("deep{}", ".x".repeat(200)));
    let id = router.insert(&deep, Role::Subscriber, 1);
    assert!(router.held_bytes() > full + 100_000, "each of its tokens has a map of its own");
    assert!(router.remove(&deep, id));
    assert_eq!(router.held_bytes(), full);
    for (pattern, id) in patterns.iter().zip(ids) {
        assert!(router.remove(pattern, id));
    }
    assert_eq!(router.held_bytes(), 0);
}

#[test]
fn a_publisher_of_long_subjects_keeps_few_of_them() {
    let router: Router<u32> = Router::new();
    let mut cache = MatchCache::default();
    let start = "s".repeat(4000);
    for n in 0..2000 {
        router.lookup(&mut cache, format!("{start}{n}").as_bytes());
        assert!(cache.held_bytes() < 150_000, "{} after {n}", cache.held_bytes());
    }
    for n in 0..500 {
        router.lookup(&mut cache, format!("short.{n}").as_bytes());
    }
    let hits = cache.hits;
    for n in 0..500 {
        router.lookup(&mut cache, format!("short.{n}").as_bytes());
    }
    assert_eq!(cache.hits - hits, 500, "ordinary ones are kept");
    cache.clear();
    assert_eq!(cache.held_bytes(), 0);
}

#[test]
fn subjects_that_differ_in_a_last_token_that_nobody_asks_for_have_one_answer() {
    let router = Router::new();
    let mut cache = MatchCache::default();
    router.insert(&pattern("_INBOX.one.*"), Role::Subscriber, 1u32);
    router.insert(&pattern("_INBOX.two.>"), Role::Subscriber, 2);
    for n in 0..100 {
        for (client, target) in [("one", 1), ("two", 2)] {
            let reply = format!("_INBOX.{client}.{n}");
            assert_eq!(router.lookup(&mut cache, reply.as_bytes()).subscribers, [target]);
            assert_eq!(router.matches(reply.as_bytes()).subscribers, [target]);
        }
    }
    assert_eq!(router.lookup(&mut cache, b"_INBOX.two.1.2").subscribers, [2]);
    assert!(router.lookup(&mut cache, b"_INBOX.one.1.2").is_empty());
    let stats = router.stats();
    // `_INBOX.one.`, `_INBOX.two.`, `_INBOX.two.1.` and `_INBOX.one.1.`
    assert_eq!((stats.cached, stats.cached_targets), (4, 3));
    // What is no subject has no part in it.
    for broken in [&b"_INBOX.one."[..], b"_INBOX.one.\xff", b"_INBOX..1", b"_INBOX."] {
        assert!(router.lookup(&mut cache, broken).is_empty(), "{broken:?}");
    }
}

#[test]
fn an_answer_for_all_last_tokens_ends_with_the_first_that_is_asked_for() {
    let router = Router::new();
    let (mut cache, other) = (MatchCache::default(), &mut MatchCache::default());
    router.insert(&pattern("a.*"), Role::Subscriber, 1u32);
    for subject in [b"a.x", b"a.y"] {
        assert_eq!(router.lookup(&mut cache, subject).subscribers, [1]);
    }
    let id = router.insert(&pattern("a.x"), Role::Subscriber, 2);
    for cache in [&mut cache, other] {
        assert_eq!(router.lookup(cache, b"a.y").subscribers, [1]);
        assert_eq!(sorted(router.lookup(cache, b"a.x").subscribers.clone()), [1, 2]);
        assert_eq!(router.lookup(cache, b"a.z").subscribers, [1]);
    }
    assert!(router.remove(&pattern("a.x"), id));
    for subject in [b"a.x", b"a.y", b"a.z", b"a.0"] {
        assert_eq!(router.lookup(&mut cache, subject).subscribers, [1]);
    }
    assert_eq!(cache.targets(), 4, "three kept for themselves, and one for all others");
}

#[test]
fn a_verdict_is_about_one_subject_also_where_the_answer_is_about_many() {
    let router = Router::new();
    let mut cache = MatchCache::default();
    router.insert(&pattern("a.*"), Role::Subscriber, 1u32);
    let mut asked = Vec::new();
    for (subject, allowed) in [("a.1", true), ("a.1", true), ("a.2", false), ("a.2", false), ("a.1", true)] {
        let judge = || {
            asked.push(subject);
            allowed
        };
        let (set, verdict) = router.lookup_judged(&mut cache, subject.as_bytes(), judge);
        assert_eq!((&set.subscribers[..], verdict), (&[1][..], allowed), "{subject}");
    }
    assert_eq!(asked, ["a.1", "a.2", "a.1"]);
    assert_eq!(cache.targets(), 1);
    // A publisher cannot have long subjects remembered, which nobody would know to take memory.
    let long = format!("a.{}", "x".repeat(4000));
    let mut times = 0;
    for _ in 0..3 {
        router.lookup_judged(&mut cache, long.as_bytes(), || {
            times += 1;
            true
        });
    }
    assert_eq!(times, 3);
}
