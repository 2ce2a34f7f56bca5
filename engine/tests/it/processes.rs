//! The processes as a user runs them: what they account for, how they end, what they refuse.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::process::Child;
use std::time::Duration;

use paper_engine::report::{DemoReport, PublisherReport};
use rustix::process::{Pid, Signal, kill_process};

use crate::peer::{Exchange, PATIENCE, is_running, paper_engine, run, signal, stderr, wait_until};

/// Everything published is accounted for, every order acked once, every histogram complete.
fn check(report: &DemoReport) {
    let DemoReport { publisher, engine, exchange, .. } = report;
    let counters = &engine.counters;
    let latencies = &engine.latencies;
    println!("seed {}: {counters:?}", report.seed);
    assert!(publisher.published > 0);
    assert_eq!(publisher.send_errors, 0);
    assert_eq!(publisher.lateness.count, publisher.published);
    assert_eq!(counters.ticks, publisher.published - counters.missed);
    assert_eq!(exchange.counters.ticks, publisher.published - exchange.counters.missed);
    let wrong = [
        counters.malformed_datagrams,
        counters.malformed_messages,
        counters.duplicates,
        counters.book_errors,
        counters.clock_errors,
        counters.other_symbols,
        exchange.counters.malformed,
    ];
    assert_eq!(wrong, [0; 7]);
    if counters.missed == 0 {
        assert_eq!(counters.unknown_orders, 0);
        assert_eq!(counters.datagrams - counters.heartbeats, publisher.datagrams);
    }

    assert!(counters.orders > 0);
    assert_eq!(counters.accepted + counters.rejected, counters.orders);
    assert_eq!((counters.unexpected_responses, counters.open_orders), (0, 0));
    assert_eq!(exchange.counters.orders, counters.orders);
    assert_eq!(exchange.counters.accepted, counters.accepted);
    assert_eq!(exchange.counters.fills, counters.fills);
    assert_eq!(exchange.counters.canceled, counters.canceled);

    assert_eq!(latencies.tick_to_order.count, counters.orders);
    assert_eq!(latencies.send.count, counters.orders);
    assert_eq!(latencies.order_to_ack.count, counters.orders);
    assert_eq!(latencies.recv.count, counters.datagrams);
    assert_eq!(latencies.feed_to_recv.count, counters.datagrams - counters.heartbeats);
    for latency in [
        latencies.tick_to_order,
        latencies.send,
        latencies.recv,
        latencies.feed_to_recv,
        latencies.order_to_ack,
        publisher.lateness,
    ] {
        assert!(latency.p50_ns <= latency.p99_ns && latency.p99_ns <= latency.max_ns);
        assert!(latency.sum_ns >= latency.max_ns / 2 && latency.sum_ns > 0);
    }

    for pid in [publisher.pid, engine.pid, exchange.pid] {
        assert!(!is_running(pid), "child {pid} is left");
    }
}

#[test]
fn demo_accounts_for_everything_in_block_mode() {
    demo_accounts_for_everything("block");
}

#[test]
fn demo_accounts_for_everything_in_epoll_mode() {
    demo_accounts_for_everything("epoll");
}

#[test]
fn demo_accounts_for_everything_in_spin_mode() {
    demo_accounts_for_everything("spin");
}

fn demo_accounts_for_everything(mode: &str) {
    let output = run(&["demo", "--for", "2s", "--format", "json", "--mode", mode, "--seed", "7"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: DemoReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.mode.as_str(), report.seed), (mode, 7));
    check(&report);
    let counters = &report.engine.counters;
    assert!(counters.ticks > 1_000 && counters.orders > 50);
}

#[test]
fn demo_runs_until_sigterm_and_its_flags_have_environment_forms() {
    let mut child = paper_engine(&["demo"])
        .env("PAPER_ENGINE_FORMAT", "json")
        .env("PAPER_ENGINE_RATE", "3000")
        .env("PAPER_ENGINE_MAX_POSITION", "0")
        .spawn()
        .unwrap();
    demo_pids(&mut child);
    std::thread::sleep(Duration::from_secs(1));
    signal(&child, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: DemoReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report.publisher.rate.to_bits(), 3000_f64.to_bits());
    let counters = &report.engine.counters;
    assert_eq!(counters.orders, 0);
    assert!(counters.denied["position"] > 0);
    assert_eq!(counters.ticks, report.publisher.published - counters.missed);
}

#[test]
fn children_die_with_a_killed_demo() {
    let mut child = paper_engine(&["demo"]).spawn().unwrap();
    let pids = demo_pids(&mut child);
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|&pid| is_running(pid)));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("children die", || !pids.iter().any(|&pid| is_running(pid)));
}

#[test]
fn a_dead_child_ends_the_demo_with_an_error() {
    let mut child = paper_engine(&["demo"]).spawn().unwrap();
    let pids = demo_pids(&mut child);
    let exchange = Pid::from_raw(i32::try_from(pids[1]).unwrap()).unwrap();
    kill_process(exchange, Signal::KILL).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    wait_until("children die", || !pids.iter().any(|&pid| is_running(pid)));
}

/// Waits until a demo has started its children, and returns their pids: engine, exchange, publisher.
fn demo_pids(child: &mut Child) -> Vec<u32> {
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn a_closed_pipe_is_a_clean_end() {
    let mut child = paper_engine(&["publish", "--to", "127.0.0.1:9", "--count", "1"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn the_same_seed_publishes_the_same_bytes() {
    let received: Vec<_> = (0..2)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let to = socket.local_addr().unwrap().to_string();
            let child = paper_engine(&[
                "publish", "--to", &to, "--count", "200", "--seed", "3", "--rate", "5000", "--format", "json",
            ])
            .spawn()
            .unwrap();
            let mut messages = Vec::new();
            let mut buffer = [0; 2048];
            loop {
                let len = socket.recv(&mut buffer).unwrap();
                let packet = paper_engine::md::Packet::parse(&buffer[..len]).unwrap();
                if packet.end_of_session {
                    assert_eq!(packet.sequence, 201);
                    break;
                }
                messages.extend(packet.messages().map(|message| message.unwrap().body));
            }
            let output = child.wait_with_output().unwrap();
            let report: PublisherReport = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report.published, 200);
            messages
        })
        .collect();
    assert_eq!(received[0].len(), 200);
    assert_eq!(received[0], received[1]);
}

#[test]
fn bad_input_has_the_right_exit_code_and_says_what_is_wrong() {
    // Both stay taken until the end.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = listener.local_addr().unwrap().to_string();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp = socket.local_addr().unwrap().to_string();
    let nobody = "127.0.0.1:1";
    let cases: &[(&[&str], i32, &str)] = &[
        (&[], 2, "Usage"),
        (&["dance"], 2, "dance"),
        (&["publish"], 2, "--to"),
        (&["publish", "--to", "nowhere"], 2, "nowhere"),
        (&["publish", "--to", "127.0.0.1:9", "--rate", "0"], 2, "messages per second"),
        (&["publish", "--to", "127.0.0.1:9", "--batch", "0"], 2, "batch"),
        (&["demo", "--for", "soon"], 2, "duration"),
        (&["demo", "--mode", "sleep"], 2, "block, epoll, spin"),
        (&["engine"], 2, "--exchange"),
        (&["engine", "--exchange", nobody], 69, "Connection refused"),
        (&["engine", "--exchange", nobody, "--feed", &udp], 69, "in use"),
        // Somebody listens there, but never answers the login.
        (&["engine", "--exchange", &tcp], 69, "cannot open a session"),
        (&["exchange", "--feed", &udp], 69, "in use"),
        (&["exchange", "--listen", &tcp], 69, "in use"),
        (&["exchange", "--listen", "192.0.2.1:0"], 69, "192.0.2.1"),
    ];
    for (arguments, code, says) in cases {
        let output = run(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
}

#[test]
fn an_engine_ends_when_its_exchange_does() {
    let exchange = Exchange::start();
    let mut engine =
        paper_engine(&["engine", "--format", "json", "--exchange", &exchange.ready.listen.to_string()])
            .spawn()
            .unwrap();
    // Its first line says that it has logged in.
    BufReader::new(engine.stderr.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    let report = exchange.stop();
    assert_eq!(report.counters.sessions, 1);
    let output = engine.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(!output.stdout.is_empty(), "it reports all the same");
}
