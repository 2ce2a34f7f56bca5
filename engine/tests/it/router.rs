//! The router between real sockets: no order is lost or doubled, whatever happens to weights and arms.
//!
//! In the first two tests the engines are replaced by arms that answer every message with an order,
//! and the exchange by one that writes down every order it gets, so that each can be looked up by
//! what caused it.

use std::collections::HashMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use paper_engine::admin::call;
use paper_engine::book::Side;
use paper_engine::clock::now_ns;
use paper_engine::engine::bind_feed;
use paper_engine::matching::{CancelReason, OrderType};
use paper_engine::md::{Body, Datagram, Message, Packet, Sequencer, Status};
use paper_engine::order_entry::{EnterOrder, Request, Response, Update};
use paper_engine::report::{EngineReport, ExchangeReport};
use paper_engine::route::Arm;
use paper_engine::router::Ready;
use paper_engine::router_report::RouterReport;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::peer::{Client, first_line, paper_engine, signal, stderr, wait_until};

const SYMBOLS: u16 = 40;

/// What caused an order: symbol and timestamp.
type Cause = (u16, u64);

/// An exchange that writes down what it gets, by cause.
struct Ledger {
    address: SocketAddr,
    orders: Arc<Mutex<HashMap<Cause, u32>>>,
}

impl Ledger {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let orders = Arc::default();
        let book = Arc::clone(&orders);
        std::thread::spawn(move || {
            for (stream, session) in listener.incoming().flatten().zip(1..) {
                let book = Arc::clone(&book);
                std::thread::spawn(move || Self::converse(Client::from_stream(stream), session, &book));
            }
        });
        Self { address, orders }
    }

    fn converse(mut client: Client, session: u32, orders: &Mutex<HashMap<Cause, u32>>) -> Option<()> {
        let mut sequence = 0;
        client.stream.set_read_timeout(None).unwrap();
        loop {
            match client.next_request()? {
                Request::Login(_) => {
                    let answer = Response::LoggedIn { session, next_sequence: 1, last_reference: 0 };
                    client.stream.write_all(answer.encode().as_slice()).ok()?;
                }
                Request::Enter(EnterOrder { reference, symbol, cause_ns, quantity, .. }) => {
                    *orders.lock().unwrap().entry((symbol, cause_ns)).or_default() += 1;
                    let canceled = Update::Canceled { quantity, reason: CancelReason::NotFilled };
                    for update in [Update::Accepted, canceled] {
                        sequence += 1;
                        let answer = Response::Order { sequence, timestamp_ns: 0, reference, update };
                        client.stream.write_all(answer.encode().as_slice()).ok()?;
                    }
                }
                _ => {}
            }
        }
    }
}

/// An arm that answers every message with an order, and counts what it is told.
struct Decider {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    orders: AtomicU64,
    acks: AtomicU64,
    missed: AtomicU64,
}

impl Decider {
    /// Receives from `feed`, and sends to the router at `router`. Now and then it is `slow`.
    fn start(feed: UdpSocket, router: SocketAddr, slow: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Seen::default());
        let client = Client::logged_in(router);
        let mut orders = client.stream.try_clone().unwrap();
        std::thread::spawn({
            let seen = Arc::clone(&seen);
            move || Self::count_acks(client, &seen)
        });
        let thread = std::thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || {
                feed.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                let mut sequencer = Sequencer::default();
                let mut rebuilding = [false; SYMBOLS as usize + 1];
                let mut buffer = [0; 2048];
                let mut reference = 0;
                while !stop.load(Ordering::Relaxed) {
                    let Ok(len) = feed.recv(&mut buffer) else { continue };
                    let packet = Packet::parse(&buffer[..len]).unwrap();
                    let arrival = sequencer.accept(&packet);
                    assert_eq!(arrival.seen, 0, "a line without repetitions");
                    seen.missed.fetch_add(arrival.missed, Ordering::Relaxed);
                    for message in packet.messages() {
                        let Message { symbol, timestamp_ns, body } = message.unwrap();
                        match body {
                            Body::Status(Status::Cleared) => rebuilding[usize::from(symbol)] = true,
                            Body::Status(Status::Ready) => rebuilding[usize::from(symbol)] = false,
                            Body::Status(_) => {}
                            _ if rebuilding[usize::from(symbol)] => {}
                            _ => {
                                reference += 1;
                                let order = Request::Enter(order(reference, symbol, timestamp_ns));
                                if orders.write_all(order.encode().as_slice()).is_ok() {
                                    seen.orders.fetch_add(1, Ordering::Relaxed);
                                }
                                if slow && reference % 200 == 0 {
                                    std::thread::sleep(Duration::from_millis(15));
                                }
                            }
                        }
                    }
                }
                orders.shutdown(std::net::Shutdown::Both).unwrap();
            }
        });
        Self { stop, thread, seen }
    }

    fn count_acks(mut client: Client, seen: &Seen) {
        while let Some(response) = client.next() {
            if matches!(response, Response::Order { update: Update::Accepted | Update::Rejected(_), .. }) {
                seen.acks.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Dies with what it has not taken yet.
    fn kill(self) -> Arc<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.seen
    }
}

fn order(reference: u32, symbol: u16, cause_ns: u64) -> EnterOrder {
    let (side, quantity, price) = (Side::Buy, 100, 1_000_000);
    EnterOrder { reference, side, quantity, symbol, price, order_type: OrderType::Ioc, cause_ns }
}

struct Router {
    child: Child,
    ready: Ready,
    admin: PathBuf,
}

impl Router {
    fn start(name: &str, exchange: SocketAddr, feeds: [SocketAddr; 2]) -> Self {
        let admin = std::env::temp_dir().join(format!("paper-engine-{}-{name}.sock", std::process::id()));
        let mut child =
            paper_engine(&["router", "--format", "json", "--parent", &std::process::id().to_string()])
                .args(["--exchange", &exchange.to_string(), "--symbols", &SYMBOLS.to_string()])
                .args(["--blue-feed", &feeds[0].to_string(), "--green-feed", &feeds[1].to_string()])
                .arg("--admin")
                .arg(&admin)
                .spawn()
                .unwrap();
        let ready = first_line(&mut child);
        Self { child, ready, admin }
    }

    fn call(&self, command: &Value) -> RouterReport {
        serde_json::from_value(call(&self.admin, command).unwrap()).unwrap()
    }

    fn status(&self) -> RouterReport {
        self.call(&json!({ "command": "status" }))
    }

    fn set_weight(&self, weight: f64, ttl_seconds: f64) -> RouterReport {
        self.call(&json!({ "command": "weight", "weight": weight, "ttl_seconds": ttl_seconds }))
    }

    /// Waits until every instrument is where it belongs.
    fn settle(&self) {
        wait_until("instruments settle", || !self.status().moving);
    }

    fn stop(self) -> RouterReport {
        signal(&self.child, Signal::TERM);
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(!self.admin.exists(), "the socket is removed");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// A publisher of messages that each cause one order.
struct Market {
    socket: UdpSocket,
    sequence: u64,
    published: Vec<Cause>,
}

impl Market {
    fn start(router: &Router) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(router.ready.feed).unwrap();
        Self { socket, sequence: 0, published: Vec::new() }
    }

    /// Publishes about 4000 messages/s for so long, and calls `meanwhile` about every 20 ms.
    fn run(&mut self, time: Duration, mut meanwhile: impl FnMut()) {
        let start = Instant::now();
        let mut next = Duration::from_millis(20);
        while start.elapsed() < time {
            for _ in 0..4 {
                self.sequence += 1;
                let symbol = (self.sequence * 7 % u64::from(SYMBOLS)) as u16 + 1;
                let timestamp_ns = now_ns();
                let trade =
                    Body::Trade { side: Side::Buy, quantity: 1, price: 1_000_000, trade: self.sequence };
                let mut datagram = Datagram::new(*b"0000000001", self.sequence);
                assert!(datagram.push(&Message { symbol, timestamp_ns, body: trade }));
                self.socket.send(datagram.as_slice()).unwrap();
                self.published.push((symbol, timestamp_ns));
            }
            std::thread::sleep(Duration::from_millis(1));
            if start.elapsed() >= next {
                next += Duration::from_millis(20);
                meanwhile();
            }
        }
    }
}

/// A small generator of choices; the seed is printed by the test.
fn choice(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

fn feeds() -> ([UdpSocket; 2], [SocketAddr; 2]) {
    let sockets = [0, 1].map(|_| bind_feed("127.0.0.1:0".parse().unwrap()).unwrap());
    let addresses = [0, 1].map(|at: usize| sockets[at].local_addr().unwrap());
    (sockets, addresses)
}

#[test]
fn every_message_leads_to_one_order_while_weights_change_and_green_is_slow() {
    let ledger = Ledger::start();
    let ([blue_feed, green_feed], addresses) = feeds();
    let router = Router::start("weights", ledger.address, addresses);
    let blue = Decider::start(blue_feed, router.ready.blue_listen, false);
    let green = Decider::start(green_feed, router.ready.green_listen, true);
    wait_until("both are up", || router.status().blue.up && router.status().green.up);
    router.settle();
    let mut market = Market::start(&router);
    let mut seed = now_ns();
    println!("seed {seed}");
    market.run(Duration::from_secs(4), || match choice(&mut seed, 6) {
        0 => drop(router.call(&json!({ "command": "shadow", "on": choice(&mut seed, 2) == 0 }))),
        1 => drop(router.set_weight(choice(&mut seed, 1_001) as f64 / 10.0, 0.01)),
        _ => drop(router.set_weight(choice(&mut seed, 1_001) as f64 / 10.0, 60.0)),
    });
    // All is said when every order has been answered.
    let all = || {
        let [blue, green] = [&blue.seen, &green.seen];
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&blue.orders), load(&blue.acks), load(&green.orders), load(&green.acks))
    };
    let mut last = (0, 0, 0, 0);
    wait_until("every order is answered", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = all();
        std::mem::replace(&mut last, now) == now && now.0 == now.1 && now.2 == now.3
    });
    let report = router.stop();
    println!("{report:?}");
    let orders = ledger.orders.lock().unwrap();
    let twice: Vec<_> = orders.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "doubled: {twice:?}");
    // Datagrams that the kernel dropped under load are counted by who missed them.
    let missed = report.market_data.missed
        + blue.seen.missed.load(Ordering::Relaxed)
        + green.seen.missed.load(Ordering::Relaxed);
    let lost = market.published.iter().filter(|cause| !orders.contains_key(cause)).count();
    assert!(lost as u64 <= missed, "{lost} lost, but only {missed} missed");
    assert_eq!(orders.len() + lost, market.published.len());
    assert_eq!(report.blue.counters.live + report.green.counters.live, orders.len() as u64);
    assert_eq!((report.blue.counters.late, report.green.counters.late), (0, 0));
    assert!(report.green.counters.live > 100 && report.blue.counters.live > 100);
    assert!(report.green.counters.paper > 0, "shadowed now and then");
    assert!(report.leases_expired > 0);
    blue.kill();
    green.kill();
}

#[test]
fn a_dying_arm_costs_only_what_it_had_in_hand() {
    let ledger = Ledger::start();
    let (sockets, addresses) = feeds();
    let router = Router::start("death", ledger.address, addresses);
    let listen = [router.ready.blue_listen, router.ready.green_listen];
    let [mut blue, mut green] =
        [0, 1].map(|at: usize| Some(Decider::start(sockets[at].try_clone().unwrap(), listen[at], false)));
    wait_until("both are up", || router.status().blue.up && router.status().green.up);
    router.set_weight(50.0, 600.0);
    router.settle();
    let mut market = Market::start(&router);
    let calm = Duration::from_millis(500);
    let mut missed = 0;
    // When some arm was dead, or about to be.
    let mut dead: Vec<(u64, u64)> = Vec::new();
    for round in 0..6 {
        market.run(calm, || {});
        let (arm, at) = if round % 2 == 0 { (&mut green, 1) } else { (&mut blue, 0) };
        let from_ns = now_ns() - 300_000_000;
        missed += arm.take().unwrap().kill().missed.load(Ordering::Relaxed);
        market.run(calm, || {});
        let status = router.status();
        assert!(!if at == 0 { status.blue.up } else { status.green.up });
        if at == 1 {
            assert_eq!(status.blue.symbols, usize::from(SYMBOLS), "blue takes over");
        } else {
            assert_eq!(status.green.symbols, usize::from(SYMBOLS) / 2, "green gets no more than its weight");
        }
        // What the dead one left in its socket is not for its successor.
        let mut buffer = [0; 2048];
        sockets[at].set_nonblocking(true).unwrap();
        while sockets[at].recv(&mut buffer).is_ok() {}
        sockets[at].set_nonblocking(false).unwrap();
        *arm = Some(Decider::start(sockets[at].try_clone().unwrap(), listen[at], false));
        wait_until("it is up again", || router.status().blue.up && router.status().green.up);
        router.settle();
        dead.push((from_ns, now_ns() + 100_000_000));
    }
    market.run(calm, || {});
    std::thread::sleep(calm);
    let report = router.stop();
    for arm in [blue, green].into_iter().flatten() {
        missed += arm.kill().missed.load(Ordering::Relaxed);
    }
    println!("{report:?}");
    let orders = ledger.orders.lock().unwrap();
    assert!(orders.values().all(|count| *count == 1), "doubled");
    assert!(orders.keys().all(|cause| market.published.contains(cause)), "nobody asked for it");
    let lost: Vec<_> = market.published.iter().filter(|cause| !orders.contains_key(cause)).collect();
    let unexplained =
        lost.iter().filter(|(_, at_ns)| !dead.iter().any(|(from, to)| (from..=to).contains(&at_ns))).count()
            as u64;
    assert!(unexplained <= missed + report.market_data.missed, "{unexplained} of {} lost", lost.len());
    assert!(orders.len() > market.published.len() / 2);
    assert_eq!(report.blue.counters.logins + report.green.counters.logins, 8);
}

/// Real engines and a real exchange; all but the exchange are stopped by dropping.
struct Venue {
    exchange: Child,
    router: Router,
    engines: Vec<Child>,
    publisher: Child,
}

impl Venue {
    fn start(name: &str, green: &[&str]) -> Self {
        let parent = std::process::id().to_string();
        let symbols = SYMBOLS.to_string();
        let common = ["--format", "json", "--parent", &parent];
        let mut exchange = paper_engine(&["exchange", "--symbols", &symbols]).args(common).spawn().unwrap();
        let at: paper_engine::exchange::Ready = first_line(&mut exchange);
        // Of this process alone, and out of the range from which free ports are given.
        let [_, _, c, d] = std::process::id().to_be_bytes();
        let addresses = [17_103, 17_203].map(|port| SocketAddr::from(([127, 77, c, d], port)));
        let router = Router::start(name, at.listen, addresses);
        let engines = Arm::BOTH
            .into_iter()
            .map(|arm| {
                let listen = [router.ready.blue_listen, router.ready.green_listen][arm as usize];
                let mut engine = paper_engine(&["engine", "--symbols", &symbols, "--mode", "epoll"]);
                // However slow the machine is, it is the decisions that are compared here.
                engine.args(["--max-data-age", "1h"]);
                engine.args(["--exchange", &listen.to_string(), "--build", arm.name()]);
                engine.args(["--feed", &addresses[arm as usize].to_string()]).args(common);
                if arm == Arm::Green {
                    engine.args(green);
                }
                let mut engine = engine.spawn().unwrap();
                first_line::<Value>(&mut engine);
                engine
            })
            .collect();
        let publisher = paper_engine(&["publish", "--symbols", &symbols, "--rate", "1500"])
            .args(["--to", &router.ready.feed.to_string(), "--to", &at.feed.to_string()])
            .args(common)
            .spawn()
            .unwrap();
        Self { exchange, router, engines, publisher }
    }

    fn stop(self) -> (RouterReport, Vec<EngineReport>, ExchangeReport) {
        let finish = |child: Child| {
            signal(&child, Signal::TERM);
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            output.stdout
        };
        finish(self.publisher);
        let engines = self.engines.into_iter().map(|child| serde_json::from_slice(&finish(child)).unwrap());
        let engines = engines.collect();
        let router = self.router.stop();
        (router, engines, serde_json::from_slice(&finish(self.exchange)).unwrap())
    }
}

#[test]
fn real_engines_share_the_flow_and_a_shadow_decides_as_its_primary() {
    let venue = Venue::start("real", &[]);
    let router = &venue.router;
    let count = |what: fn(&RouterReport) -> u64, wanted: u64| {
        let start = what(&router.status());
        wait_until("enough orders", || what(&router.status()) >= start + wanted);
    };
    count(|status| status.blue.counters.live, 50);
    let status = router.call(&json!({ "command": "shadow", "on": true }));
    assert!(status.shadow && status.green.counters.live == 0);
    count(|status| status.green.counters.paper, 100);
    let status = router.set_weight(25.0, 600.0);
    assert!(status.weight.to_bits() == 25_f64.to_bits() && status.lease_seconds_left > 500.0);
    router.settle();
    assert_eq!(router.status().green.symbols, 10);
    count(|status| status.green.counters.live, 50);
    router.set_weight(100.0, 600.0);
    router.settle();
    let status = router.call(&json!({ "command": "promote" }));
    assert_eq!((status.primary, status.weight.to_bits()), (Arm::Green, 0));
    router.settle();
    assert_eq!(router.status().green.symbols, usize::from(SYMBOLS));
    count(|status| status.green.counters.live, 50);
    router.set_weight(0.1, 0.05);
    wait_until("the lease ends", || router.status().leases_expired == 1);
    for wrong in [
        json!({ "command": "weight", "weight": 0.05, "ttl_seconds": 1 }),
        json!({ "command": "weight", "weight": 100.1, "ttl_seconds": 1 }),
        json!({ "command": "weight", "weight": 1, "ttl_seconds": -1 }),
        json!({ "command": "weight", "weight": 1 }),
    ] {
        assert!(call(&router.admin, &wrong).is_err(), "{wrong}");
    }
    let (router, engines, exchange) = venue.stop();
    println!("{router:?}\n{engines:?}\n{exchange:?}");
    for (engine, arm) in engines.iter().zip([&router.blue, &router.green]) {
        let counters = &engine.counters;
        assert_eq!((counters.open_orders, counters.unexpected_responses), (0, 0));
        assert_eq!(counters.accepted + counters.rejected, counters.orders);
        assert_eq!(counters.orders, arm.counters.orders);
        assert_eq!(arm.counters.live, arm.counters.accepted + arm.counters.rejected);
        assert_eq!(arm.latency.count, arm.counters.orders);
    }
    assert_eq!(exchange.counters.orders, router.blue.counters.live + router.green.counters.live);
    let missed: u64 = engines.iter().map(|engine| engine.counters.missed).sum();
    let compared = &router.compared;
    assert!(compared.equal >= 90, "{compared:?}");
    assert!(missed > 0 || compared.different + compared.only_primary + compared.only_canary == 0);
}
