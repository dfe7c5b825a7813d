//! The help of the server under the name `nats-server`.

/// What `-h` prints.
pub(crate) const HELP: &str = "
Usage: nats-server [options]

The embedded server of Trunkline with the command line, the configuration file, the log and the signals of nats-server.

Server Options:
    -a, --addr, --net <host>         Bind to host address (default: 127.0.0.1; others need users or a token)
                                     nats-server -a 0.0.0.0 --user app --pass secret
    -p, --port <port>                Use port for clients (default: 4222); -1 is any free one
                                     nats-server -p -1
    -n, --name
        --server_name <server_name>  Server name (default: auto)
                                     nats-server -n bus-1
    -P, --pid <file>                 File to store PID
                                     nats-server -P /run/nats-server.pid
    -m, --http_port <port>           Use port for http monitoring; -1 is any free one
                                     nats-server -m 8222
    -ms,--https_port <port>          Use port for https monitoring; -1 is any free one
                                     nats-server -ms 8443 --tlscert server.pem --tlskey key.pem
    -c, --config <file>              Configuration file
                                     nats-server -c nats-server.conf
    -t                               Test configuration and exit
                                     nats-server -t -c nats-server.conf
    -sl,--signal <signal>[=<pid>]    Send signal to nats-server process (ldm, stop, quit, term, reopen, reload)
                                     <pid> can be a PID (e.g. 1), the path to a PID file, or the beginning of PIDs (1*, or *)
                                     nats-server --signal ldm=/run/nats-server.pid
        --client_advertise <host>    Where clients are told that the server is (default: where it listens)
                                     nats-server --client_advertise bus.example.org:4222
        --ports_file_dir <dir>       Creates a ports file in the specified directory (<executable_name>_<pid>.ports)
                                     nats-server -p -1 --ports_file_dir /tmp

Logging Options:
    -l, --log <file>                 File to redirect log output
                                     nats-server -l /var/log/nats-server.log
    -T, --logtime                    Timestamp log entries (default: true)
                                     nats-server -T=false
        --logtime_utc                Timestamps in UTC instead of local timezone (default: false)
                                     nats-server --logtime_utc
    -D, --debug                      Enable debugging output
                                     nats-server -D
    -V, --trace                      Trace the raw protocol
                                     nats-server -V
    -DV                              Debug and trace
                                     nats-server -DV
        --log_size_limit <bytes>     Begin another log file past this size (default: none)
                                     nats-server -l nats.log --log_size_limit 100000000
        --max_traced_msg_len <len>   Bytes of a message that traces show (default: all)
                                     nats-server -V --max_traced_msg_len 100

Authorization Options:
        --user <user>                User required for connections
        --pass <password>            Password required for connections
                                     nats-server --user app --pass secret
        --auth <token>               Authorization token required for connections
                                     nats-server --auth secret

TLS Options:
        --tls                        Enable TLS, do not verify clients (default: false)
        --tlscert <file>             Server certificate file
        --tlskey <file>              Private key for server certificate
                                     nats-server --tls --tlscert server.pem --tlskey key.pem
        --tlsverify                  Enable TLS, verify client certificates; needs --tlscacert
        --tlscacert <file>           Client certificate CA for verification
                                     nats-server --tlsverify --tlscert server.pem --tlskey key.pem --tlscacert ca.pem

Common Options:
    -h, --help                       Show this message
                                     nats-server -h
        --help_tls                   TLS help
    -v, --version                    Show version
                                     nats-server -v

Taken and without effect: -sd, --store_dir, --profile, --no_advertise, --cluster_name, --cluster_advertise, --connect_retries.
Not served, and refused: JetStream, clusters, syslog.
";

/// What `--help_tls` prints.
pub(crate) const HELP_TLS: &str = "
TLS with a certificate that is signed by an authority, all files in PEM:

    nats-server --tls --tlscert server.pem --tlskey key.pem

The same, and clients have to show a certificate that an authority in ca.pem has signed:

    nats-server --tlsverify --tlscert server.pem --tlskey key.pem --tlscacert ca.pem

In the configuration file, with all that can be said of it:

    tls {
      cert_file: server.pem
      key_file: key.pem
      ca_file: ca.pem            # authorities of clients' certificates
      verify: true               # clients have to show one
      verify_and_map: true       # and it says which user a client is
      timeout: 2                 # seconds for a handshake
      handshake_first: auto      # or true, false, \"300ms\": before the server's first line
      min_version: \"1.2\"
    }

The files are read again by `nats-server --signal reload`.
";
