//! The command line as a whole: which commands there are.

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::commands::completions::CompletionsArgs;
use crate::commands::config::ConfigArgs;
use crate::commands::consume::ConsumeArgs;
use crate::commands::consumer::ConsumerArgs;
use crate::commands::dashboard::DashboardArgs;
use crate::commands::dlq::DeadLetterArgs;
use crate::commands::doctor::DoctorArgs;
use crate::commands::export::ExportArgs;
use crate::commands::init::InitArgs;
use crate::commands::passwd::PasswdArgs;
use crate::commands::publish::PublishArgs;
use crate::commands::replay::ReplayArgs;
use crate::commands::reply::ReplyArgs;
use crate::commands::request::RequestArgs;
use crate::commands::status::StatusArgs;
use crate::commands::stream::StreamArgs;
use crate::commands::subscribe::SubscribeArgs;
use crate::commands::tail::TailArgs;
use crate::commands::trace::TraceArgs;
use crate::commands::up::UpArgs;
use crate::commands::wait::WaitArgs;
use crate::settings::GlobalArgs;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// One message bus for AI-agent platforms.
///
/// Channels, gateways, LLM proxies, tools and workers talk through it, in any language that has a NATS client.
#[derive(Debug, Parser)]
#[command(
    name = "trunkline",
    version,
    styles = STYLES,
    max_term_width = 110,
    arg_required_else_help = true,
    after_help = "Examples:
  trunkline up --demo                                  a bus, and a small agent platform on it
  trunkline sub 'nachos.>'                             every message of the platform
  trunkline reply math.add --exec 'jq -c .a+.b'        a tool, as a command
  trunkline request math.add '{\"a\":1,\"b\":2}'           ask it
  trunkline trace --last                               what happened in the last conversation, as a tree and a time line
  trunkline init                                       write config.yaml, by a few questions
  trunkline doctor                                     what is wrong, and what to do about it
  trunkline nats-server -p 4222                        the server with flags, config file and signals of nats-server

Exit codes: 0 ok, 1 failed, 2 wrong usage. Data goes to stdout, logs and progress to stderr."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(InitArgs),
    Up(UpArgs),
    Pub(PublishArgs),
    Sub(SubscribeArgs),
    Request(RequestArgs),
    Reply(ReplyArgs),
    Stream(StreamArgs),
    Consumer(ConsumerArgs),
    Consume(ConsumeArgs),
    Dlq(DeadLetterArgs),
    Replay(ReplayArgs),
    Trace(TraceArgs),
    Tail(TailArgs),
    Status(StatusArgs),
    Dashboard(DashboardArgs),
    Wait(WaitArgs),
    Doctor(DoctorArgs),
    Config(ConfigArgs),
    Export(ExportArgs),
    Passwd(PasswdArgs),
    #[command(after_help = "Examples:
  trunkline bench                                      every scenario against the bus on this machine
  trunkline bench fanout --subscribers 8 --payload 1KiB --json
  trunkline bench sub --crowd 1000 --churn 10000       beside 1000 connections with 100,000 subscriptions
  trunkline bench --compare nats=nats-server --compare trunkline=trunkline
  trunkline bench redis                                the redis backend against plain commands
  trunkline bench nats                                 the nats backend against plain calls of async-nats")]
    Bench(BenchArgs),
    Completions(CompletionsArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command) {
            let is_group = command.get_subcommands().any(|sub| sub.get_name() != "help");
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(is_group || help.contains("Examples:\n  "), "{} has no example", command.get_name());
            command.get_subcommands().filter(|sub| sub.get_name() != "help").for_each(check);
        }
        check(&Cli::command());
    }
}
