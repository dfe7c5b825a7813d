//! One suite for all backends: every row of the table of guarantees on
//! [`Backend`](trunkline::backend::Backend), and everything the bus must never do, is a named property.
//!
//! A backend is held to a [`Column`] of the table. What the column promises must hold; what it does not promise
//! must be refused with a typed `Unsupported`, which [`refusal`] asserts in the property's place. Nothing is
//! skipped. A backend's tests are one line: [`conformance!`](crate::conformance!) makes a test of each property.

pub mod harness;
pub mod probe;
pub mod process;
pub mod refusal;
mod replicated;

pub mod bus;
pub mod chaos;
pub mod consumer;
pub mod deletion;
pub mod groups;
pub mod live;
pub mod membership;
pub mod outage;
pub mod publishing;
pub mod requests;
pub mod stored;
pub mod streams;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use trunkline::backend::Fut;

use bus::{calls, contexts, ordered, outbox, replies, survival, traces, work};
pub use harness::{Column, Faults, Harness};

/// Longest time one property may take; it only ends a test that hangs.
const PROPERTY_TIME_MAX: Duration = Duration::from_secs(120);

/// How often a property is tried on a server that is known to repeat deliveries: it counts and orders them wrongly once in a
/// while, which is not the bus's doing. What is broken by the bus, or lacking, is so each time.
const TRIES_MAX: u32 = 3;

/// What a property needs of the backend. Where the column lacks it, the refusal is asserted instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it holds everywhere.
    Nothing,
    /// Streams and consumers.
    Streams,
    /// Consumers with one active member.
    OrderByKey,
    /// Subscriptions that start in the stored past.
    StoredStart,
    /// Deduplication by id.
    Dedupe,
    /// A server that can go away.
    Server,
    /// A server whose stored messages outlive it.
    Durable,
}

/// One rule that a backend, or the bus on it, keeps.
pub struct Property {
    /// The rule, as the name of its test.
    pub name: &'static str,
    /// What the backend must have for it.
    pub need: Need,
    /// Panics when the rule is broken.
    pub run: for<'a> fn(&'a Harness) -> Fut<'a, ()>,
}

/// Lists every property once: from this come both [`PROPERTIES`] and the tests, so the two cannot differ.
/// The leading `$` is handed through, because a macro that defines a macro cannot write it.
macro_rules! properties {
    ($d:tt $($module:ident { $($name:ident: $need:ident,)* })*) => {
        /// Every property of the suite.
        pub const PROPERTIES: &[Property] = &[$($(
            Property {
                name: stringify!($name),
                need: Need::$need,
                run: |harness| Box::pin($module::$name(harness)),
            },
        )*)*];

        /// Makes one named test of every property. Takes an expression, which may await, that makes a
        /// [`Harness`](crate::conformance::Harness); each test evaluates it anew.
        #[macro_export]
        macro_rules! conformance {
            ($d harness:expr) => {
                $($(
                    #[test]
                    fn $name() {
                        $crate::conformance::check(stringify!($name), || async { $d harness });
                    }
                )*)*
            };
        }
    };
}

properties! { $
    publishing {
        capabilities_are_those_of_the_table: Nothing,
        status_is_connected_and_names_the_backend: Nothing,
        message_arrives_whole: Nothing,
        publish_without_a_stream_is_accepted: Nothing,
        oversized_publish_is_refused_or_arrives_whole: Nothing,
        flush_proves_receipt: Nothing,
        drain_delivers_what_was_published_then_closes: Nothing,
    }
    live {
        everything_published_after_subscribe_returned_arrives: Nothing,
        subscribers_do_not_steal_from_each_other: Nothing,
        patterns_match_whole_tokens: Nothing,
        order_is_kept_per_publisher_and_subject: Nothing,
        what_a_slow_subscriber_misses_is_a_counted_gap: Nothing,
        slow_subscriber_does_not_hold_up_the_others: Nothing,
        stopped_subscription_gives_what_arrived_then_ends: Nothing,
        cancelled_receive_loses_nothing: Nothing,
        thousand_subscriptions_each_get_their_own: Nothing,
    }
    groups {
        queue_group_gives_each_message_to_exactly_one_member: Nothing,
        queue_groups_and_plain_subscriptions_each_get_everything: Nothing,
        queue_group_goes_on_when_a_member_leaves: Nothing,
        queue_group_of_one_name_on_two_patterns_is_two_groups: Nothing,
    }
    requests {
        request_reaches_a_responder_and_the_reply_comes_back: Nothing,
        request_to_nobody_gets_503_at_once: Nothing,
        request_to_a_queue_group_has_one_answer: Nothing,
        dropped_responder_is_no_responder: Nothing,
        inboxes_differ_and_are_private: Nothing,
    }
    streams {
        publish_is_stored_where_a_stream_matches: Streams,
        ensure_is_idempotent_and_updates_limits: Streams,
        overlapping_streams_are_refused: Streams,
        bad_stream_definitions_are_refused: Streams,
        unknown_streams_are_named_in_the_error: Streams,
        stream_list_is_by_name: Streams,
        removed_stream_stores_nothing: Streams,
        stream_reads_back_whole_and_in_order: Streams,
        stream_reads_from_offset_time_and_filter: Streams,
        pages_continue_where_they_ended: Streams,
        limit_removes_the_oldest_and_reading_says_so: Streams,
        offset_of_another_backend_is_refused: Streams,
        duplicate_by_id_is_stored_once: Dedupe,
        duplicates_are_only_suppressed_when_asked_for: Streams,
        stored_messages_survive_a_killed_server: Durable,
    }
    deletion {
        deleted_messages_are_gone_and_the_others_stay: Streams,
        deleted_messages_are_missed_by_no_consumer: Streams,
        deleted_messages_are_no_gap: StoredStart,
    }
    stored {
        subscription_replays_the_past_then_follows: StoredStart,
        subscription_starts_after_an_offset: StoredStart,
        replay_hands_over_to_live_without_loss_or_repeat: StoredStart,
        start_in_the_past_of_nothing_stored_is_refused: StoredStart,
    }
    consumer {
        consumer_starts_where_it_was_told: Streams,
        acked_message_never_comes_again: Streams,
        unsettled_message_comes_again_after_ack_wait: Streams,
        nak_redelivers_after_its_delay: Streams,
        nak_without_delay_redelivers_at_once: Streams,
        failing_message_blocks_no_other: Streams,
        terminated_message_never_comes_again: Streams,
        progress_keeps_the_lease: Streams,
        late_ack_of_a_lost_lease_is_refused: Streams,
        late_acks_of_many_lost_leases_are_refused: Streams,
        settled_delivery_cannot_be_settled_again: Streams,
        batch_is_answered_one_by_one_in_order: Streams,
        fetch_waits_for_a_message: Streams,
        cancelled_fetch_loses_nothing: Streams,
        consumer_takes_only_what_its_filter_matches: Streams,
        consumer_counts_what_limits_took_from_it: Streams,
        consumers_of_a_stream_are_independent: Streams,
    }
    membership {
        members_share_the_work: Streams,
        dead_member_leaves_its_messages_to_the_others: Streams,
        leaving_member_hands_over_at_once: Streams,
        consumer_outlives_its_members: Streams,
        left_member_can_do_nothing: Streams,
        consumer_info_tells_how_it_stands: Streams,
        joining_with_another_definition_is_a_conflict: Streams,
        removed_consumer_is_gone: Streams,
        keyed_consumer_gives_only_to_the_lease_holder: OrderByKey,
        lease_passes_on_when_it_is_not_renewed: OrderByKey,
        lease_passes_on_at_once_when_its_holder_leaves: OrderByKey,
        new_lease_holder_starts_with_what_was_unsettled: OrderByKey,
    }
    outage {
        publish_while_the_server_is_away_is_never_a_success: Server,
        publish_to_a_silent_server_is_not_confirmed: Server,
        status_tells_the_truth_through_an_outage: Server,
        silent_server_is_noticed: Server,
        subscription_outlives_a_restart_and_says_what_it_missed: Server,
        every_restart_is_survived: Server,
    }
    outbox {
        what_is_queued_in_an_outage_arrives_once_and_in_order: Server,
    }
    calls {
        typed_payloads_travel_in_an_envelope_and_bytes_as_they_are: Nothing,
        each_request_gets_its_own_reply: Nothing,
        nobody_answering_is_known_at_once: Nothing,
        silent_responder_is_a_timeout_and_its_late_reply_goes_to_nobody: Nothing,
        failing_handler_tells_its_requester_and_goes_on: Nothing,
        slow_handlers_hold_up_no_other_and_are_bounded: Nothing,
        stuck_call_does_not_block_the_approval_that_releases_it: Nothing,
        handler_that_publishes_does_not_deadlock: Nothing,
        handler_ends_at_the_deadline_of_its_request: Nothing,
        drain_answers_what_had_arrived_then_refuses: Nothing,
        dead_letter_subjects_are_reserved: Nothing,
        requests_on_a_failing_connection_tell_the_truth: Nothing,
    }
    contexts {
        context_passes_on_through_every_hop: Nothing,
        contexts_of_concurrent_handlers_do_not_mix: Nothing,
    }
    traces {
        stored_conversation_is_one_trace_through_retry_and_redrive: Streams,
        requests_and_reply_streams_pass_the_trace_on: Nothing,
    }
    replies {
        reply_stream_gives_its_chunks_in_order_then_ends: Nothing,
        failing_reply_stream_ends_with_its_error: Nothing,
        unread_reply_stream_stops_its_responder_at_the_window: Nothing,
        dropped_reply_stream_cancels_its_handler: Nothing,
        reply_stream_of_a_dead_responder_never_just_ends: Nothing,
        plain_reply_is_a_stream_of_one_chunk: Nothing,
    }
    work {
        handled_message_is_acknowledged_after_its_handler: Streams,
        failing_message_is_retried_by_the_policy_then_a_dead_letter: Streams,
        handler_decides_over_retry: Streams,
        expired_message_is_a_dead_letter_without_its_handler: Streams,
        failing_and_stuck_messages_hold_up_no_other: Streams,
        long_handler_keeps_its_lease: Streams,
        cancelled_handler_is_not_acknowledged: Streams,
        message_that_outlives_its_handlers_is_a_dead_letter_in_the_end: Streams,
        lost_lease_cancels_the_handler: Streams,
        dead_bus_leaves_its_work_to_the_others: Streams,
        message_stays_until_its_dead_letter_is_written: Streams,
        dead_letter_never_dead_letters_again: Streams,
        drain_lets_consumers_finish: Streams,
    }
    ordered {
        key_waits_for_its_failed_message_and_others_go_on: OrderByKey,
        keys_run_side_by_side: OrderByKey,
        message_without_a_key_is_queued_behind_nothing: OrderByKey,
        order_holds_when_the_active_member_dies: OrderByKey,
        failed_message_comes_again_past_a_backlog_of_its_key: OrderByKey,
        order_holds_when_the_lease_lapses_and_comes_back: OrderByKey,
    }
    survival {
        every_message_ends_well_or_as_a_dead_letter_on_failing_connections: Streams,
        order_by_key_holds_on_failing_connections: OrderByKey,
    }
    chaos {
        random_fan_out_keeps_every_rule: Nothing,
        random_consumer_work_keeps_every_rule: Streams,
        random_consumer_work_on_a_failing_connection_keeps_every_rule: Streams,
    }
}

/// Runs the property `name` on a harness made for it.
///
/// # Panics
/// When the property does not hold, or is not refused where the table says that it is unsupported.
pub fn check<F: Future<Output = Harness>>(name: &str, harness: impl Fn() -> F) {
    let property = PROPERTIES.iter().find(|property| property.name == name);
    let property = property.unwrap_or_else(|| panic!("no property is named {name}"));
    for tries in 1.. {
        let mut repeats_deliveries = false;
        let once = || check_once(property, &harness, &mut repeats_deliveries);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(once)) {
            Ok(()) => return,
            Err(panic) if !repeats_deliveries || tries == TRIES_MAX => std::panic::resume_unwind(panic),
            // The panic stands in the output. What the server's defect broke now and then, a fresh server keeps.
            Err(_) => {}
        }
    }
}

fn check_once<F: Future<Output = Harness>>(
    property: &Property,
    harness: &impl Fn() -> F,
    repeats_deliveries: &mut bool,
) {
    let name = property.name;
    // Two workers, so that what could race in production can race here.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime for the test");
    runtime.block_on(async {
        let harness = harness().await;
        *repeats_deliveries = harness.repeats_deliveries();
        let outcome = tokio::time::timeout(PROPERTY_TIME_MAX, run(property, &harness)).await;
        assert!(outcome.is_ok(), "{name} did not finish within {PROPERTY_TIME_MAX:?}");
    });
    // A task that does not end must fail its own property, not hang the whole run.
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// Runs every property that `chosen` takes, each on a harness made for it, so many at once: for servers that take too long
/// to start to start them for each.
///
/// # Panics
/// When a property does not hold, once all have been tried; the message names them.
pub fn check_all<F: Future<Output = Harness>>(
    at_once: usize,
    chosen: impl Fn(Need) -> bool,
    harness: impl Fn() -> F + Sync,
) {
    let chosen = PROPERTIES.iter().filter(|property| chosen(property.need));
    let mut names: Vec<&str> = chosen.map(|property| property.name).collect();
    names.reverse();
    let (names, failed) = (Mutex::new(names), Mutex::new(Vec::new()));
    let next = || names.lock().unwrap_or_else(PoisonError::into_inner).pop();
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(name) = next() {
                    let one = || check(name, &harness);
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(one)).is_err() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failed.is_empty(), "these do not hold: {failed:?}");
}

/// Runs a property, or asserts its refusal where the column of the harness lacks what it needs.
async fn run(property: &Property, harness: &Harness) {
    let promised = harness.column().capabilities();
    let supported = match property.need {
        Need::Nothing => true,
        Need::Streams => promised.streams,
        Need::OrderByKey => promised.streams && !harness.repeats_deliveries(),
        Need::StoredStart => promised.subscribe_from_offset,
        Need::Dedupe => promised.dedupe,
        Need::Server => harness.column().has_server(),
        Need::Durable => promised.durable,
    };
    match supported {
        true => (property.run)(harness).await,
        false => refusal::assert_refused(property.need, harness).await,
    }
}
