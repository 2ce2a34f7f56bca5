//! Order entry sessions with a real exchange: cut, broken, silent and slow peers.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::time::Instant;

use paper_engine::book::Side;
use paper_engine::matching::CancelReason;
use paper_engine::order_entry::{Login, Refusal, Reject, Request, Response, Update};

use crate::peer::{Client, Exchange, PATIENCE, enter, paper_engine, signal, stderr};

#[test]
fn sessions_trade_with_each_other_however_their_bytes_come() {
    let exchange = Exchange::start();
    let mut a = Client::logged_in(exchange.ready.listen);
    let mut b = Client::logged_in(exchange.ready.listen);
    // Byte by byte …
    for byte in enter(1, Side::Buy, 100).encode().as_slice() {
        a.stream.set_nodelay(true).unwrap();
        a.stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(a.update(), (1, Update::Accepted));
    // … and many at once.
    let orders: Vec<u8> =
        (1..=5).flat_map(|reference| enter(reference, Side::Sell, 10).encode().as_slice().to_vec()).collect();
    b.stream.write_all(&orders).unwrap();
    for reference in 1..=5 {
        assert_eq!(b.update(), (reference, Update::Accepted));
        assert!(matches!(b.update(), (n, Update::Executed { quantity: 10, .. }) if n == reference));
        assert!(matches!(a.update(), (1, Update::Executed { quantity: 10, .. })));
    }
    a.send(Request::Cancel { reference: 1, symbol: 1, remaining: 0 });
    assert!(matches!(a.update(), (1, Update::Canceled { quantity: 50, .. })));
    b.send(enter(5, Side::Sell, 10));
    assert_eq!(b.update(), (5, Update::Rejected(Reject::Reference)));
    let report = exchange.stop();
    assert_eq!((report.counters.sessions, report.counters.closed), (2, 0));
    assert_eq!(report.counters.fills, 10);
}

#[test]
fn garbage_closes_its_own_connection_only() {
    let exchange = Exchange::start();
    let at = exchange.ready.listen;
    let mut good = Client::logged_in(at);
    let oversize: &[u8] = &[0xff, 0xff, b'O', 0];
    for garbage in [oversize, &[0, 0], b"GET / HTTP/1.1\r\n\r\n", &[0, 2, b'?', 1]] {
        let mut client = Client::connect(at);
        client.stream.write_all(garbage).unwrap();
        assert_eq!(client.next(), Some(Response::Refused(Refusal::Malformed)));
        assert_eq!(client.next(), None);
    }
    let mut early = Client::connect(at);
    early.send(enter(1, Side::Buy, 1));
    assert_eq!(early.next(), Some(Response::Refused(Refusal::Login)));
    let feed = UdpSocket::bind("127.0.0.1:0").unwrap();
    for garbage in [&b""[..], b"x", &[0xff; 1500]] {
        feed.send_to(garbage, exchange.ready.feed).unwrap();
    }
    good.send(enter(1, Side::Buy, 1));
    assert_eq!(good.update(), (1, Update::Accepted));
    let report = exchange.stop();
    assert_eq!(report.counters.closed, 5);
    assert_eq!(report.counters.malformed, 3);
}

#[test]
fn connections_are_bounded_and_silent_ones_are_closed() {
    let exchange = Exchange::start();
    let at = exchange.ready.listen;
    let mut silent: Vec<_> = (0..64).map(|_| Client::connect(at)).collect();
    let mut refused = Client::connect(at);
    assert_eq!(refused.next(), Some(Response::Refused(Refusal::Full)));
    for client in &mut silent {
        assert_eq!(client.next(), Some(Response::Refused(Refusal::Login)));
    }
    Client::logged_in(at);
    assert_eq!(exchange.stop().counters.closed, 65);
}

#[test]
fn a_peer_that_does_not_read_is_closed() {
    let exchange = Exchange::start();
    let mut client = Client::logged_in(exchange.ready.listen);
    client.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // Each is rejected, so nothing but the unread answers piles up.
    let orders: Vec<u8> =
        (0..1_000).flat_map(|_| enter(0, Side::Buy, 1).encode().as_slice().to_vec()).collect();
    let start = Instant::now();
    while client.stream.write_all(&orders).is_ok() {
        assert!(start.elapsed() < 3 * PATIENCE, "never closed");
    }
    assert_eq!(exchange.stop().counters.closed, 1);
}

#[test]
fn a_client_that_comes_back_learns_what_it_missed() {
    let exchange = Exchange::start();
    let mut client = Client::connect(exchange.ready.listen);
    let login = Login::new(*b"tester    ");
    client.send(Request::Login(login));
    let Some(Response::LoggedIn { session, .. }) = client.next() else { panic!("no session") };
    for reference in 1..=2 {
        client.send(enter(reference, Side::Buy, 10));
        assert_eq!(client.update(), (reference, Update::Accepted));
    }
    drop(client);
    // The exchange may not have noticed yet.
    let start = Instant::now();
    let mut client = loop {
        let mut client = Client::connect(exchange.ready.listen);
        client.send(Request::Login(Login { session, next_sequence: 2, ..login }));
        match client.next() {
            Some(Response::LoggedIn { next_sequence: 2, last_reference: 2, .. }) => break client,
            Some(Response::Refused(Refusal::Session)) if start.elapsed() < PATIENCE => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(client.update(), (2, Update::Accepted));
    let canceled = Update::Canceled { quantity: 10, reason: CancelReason::Requested };
    let mut missed = [client.update(), client.update()];
    missed.sort_unstable_by_key(|(reference, _)| *reference);
    assert_eq!(missed, [(1, canceled), (2, canceled)], "canceled by the disconnect");
    client.send(enter(3, Side::Buy, 10));
    assert_eq!(client.update(), (3, Update::Accepted));
    let report = exchange.stop();
    assert_eq!((report.counters.sessions, report.counters.resumed), (1, 1));
}

#[test]
fn silence_is_answered_by_heartbeats_and_then_by_the_end() {
    let exchange = Exchange::start();
    let mut silent = Client::logged_in(exchange.ready.listen);
    let mut alive = Client::logged_in(exchange.ready.listen);
    let mut heartbeats = 0;
    loop {
        match silent.next() {
            Some(Response::Heartbeat) => heartbeats += 1,
            Some(Response::Refused(Refusal::Silent)) => break,
            other => panic!("{other:?}"),
        }
        alive.send(Request::Heartbeat);
    }
    assert!(heartbeats >= 3, "{heartbeats} heartbeats");
    alive.send(enter(1, Side::Buy, 1));
    while let response = alive.next()
        && response != Some(Response::Heartbeat)
    {
        assert!(matches!(response, Some(Response::Order { update: Update::Accepted, .. })));
    }
    assert_eq!(exchange.stop().counters.closed, 1);
}

#[test]
fn an_engine_goes_on_with_its_session_on_a_new_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let engine = paper_engine(&["engine", "--exchange", &address, "--reconnect", "10s", "--format", "json"])
        .spawn()
        .unwrap();
    let mut expected = Login::new(*b"engine    ");
    for last_reference in [0, 0] {
        let mut client = Client::from_stream(listener.accept().unwrap().0);
        assert_eq!(client.request(), Request::Login(expected));
        let logged_in = Response::LoggedIn { session: 5, next_sequence: 1, last_reference };
        client.stream.write_all(logged_in.encode().as_slice()).unwrap();
        expected.session = 5;
    }
    // A session that is not there any more is replaced by a new one.
    let mut client = Client::from_stream(listener.accept().unwrap().0);
    assert_eq!(client.request(), Request::Login(expected));
    client.stream.write_all(Response::Refused(Refusal::Session).encode().as_slice()).unwrap();
    let mut client = Client::from_stream(listener.accept().unwrap().0);
    assert_eq!(client.request(), Request::Login(Login::new(*b"engine    ")));
    let logged_in = Response::LoggedIn { session: 6, next_sequence: 1, last_reference: 0 };
    client.stream.write_all(logged_in.encode().as_slice()).unwrap();
    assert_eq!(client.request(), Request::Heartbeat);
    signal(&engine, rustix::process::Signal::TERM);
    let output = engine.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}
