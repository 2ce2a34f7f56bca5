//! What book, matching and market data cost per operation: `cargo bench -p paper-engine`.
#![expect(clippy::unwrap_used, reason = "what a benchmark cannot set up fails it")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use paper_engine::book::{Book, Order, Side};
use paper_engine::flow::Flow;
use paper_engine::matching::{Matcher, NewOrder, OrderType};
use paper_engine::md::{Body, Datagram, Message, Packet};
use paper_engine::risk::Limits;
use paper_engine::trader::Trader;

/// Orders that rest meanwhile.
const RESTING: u64 = 10_000;

/// Price levels they are spread over, on each side.
const LEVELS: u64 = 100;

fn resting(id: u64) -> Order {
    let ticks = (id * 7_919 % LEVELS) as u32;
    let (side, price) = if id.is_multiple_of(2) {
        (Side::Buy, 1_000_000 - 100 * ticks)
    } else {
        (Side::Sell, 1_000_100 + 100 * ticks)
    };
    Order { id, owner: 0, side, price, quantity: 100 }
}

fn filled_book() -> Book {
    let mut book = Book::with_capacity(64 * 1024);
    (0..RESTING).for_each(|id| book.add(resting(id)).unwrap());
    book
}

fn book(criterion: &mut Criterion) {
    let mut book = filled_book();
    let mut id = RESTING;
    // The book keeps its size: each addition is paid back by the removal of the oldest order.
    criterion.bench_function("book/add_and_cancel", |bench| {
        bench.iter(|| {
            book.add(resting(black_box(id))).unwrap();
            book.remove(id - RESTING).unwrap();
            id += 1;
        });
    });
    let mut book = filled_book();
    let mut id = RESTING;
    criterion.bench_function("book/replace", |bench| {
        bench.iter(|| {
            let old = resting(id - RESTING);
            book.replace(old.id, id, 100, old.price).unwrap();
            id += 1;
        });
    });
}

fn matching(criterion: &mut Criterion) {
    let mut matcher = Matcher::with_capacity(64 * 1024);
    let submit = |matcher: &mut Matcher, order, order_type| {
        matcher.submit(NewOrder { order, order_type }, |event| {
            black_box(event);
        });
    };
    (0..RESTING).for_each(|id| submit(&mut matcher, resting(id), OrderType::Limit));
    let mut id = RESTING;
    criterion.bench_function("matcher/rest_and_cancel", |bench| {
        bench.iter(|| {
            submit(&mut matcher, resting(black_box(id)), OrderType::Limit);
            matcher.cancel(id, 0, |_| {}).unwrap();
            id += 1;
        });
    });
    criterion.bench_function("matcher/rest_and_match", |bench| {
        bench.iter(|| {
            let maker = Order { id, owner: 1, side: Side::Sell, price: 1_000_050, quantity: 100 };
            submit(&mut matcher, maker, OrderType::Limit);
            let taker = Order { id: id + 1, owner: 2, side: Side::Buy, ..maker };
            submit(&mut matcher, taker, OrderType::Ioc);
            id += 2;
        });
    });
}

/// Messages of the generator, as they come, over an established book.
fn flow(criterion: &mut Criterion) {
    const MESSAGES: usize = 100_000;
    let bodies: Vec<Body> = Flow::new(1, 10_000.0, 1).take(MESSAGES).map(|planned| planned.body).collect();
    let mut group = criterion.benchmark_group("flow");
    group.throughput(Throughput::Elements(MESSAGES as u64));
    group.bench_function("book_per_message", |bench| {
        bench.iter_batched_ref(
            || Book::with_capacity(1024),
            |book| bodies.iter().for_each(|body| body.apply(book).unwrap()),
            BatchSize::LargeInput,
        );
    });
    let datagrams: Vec<Datagram> = (1..)
        .zip(&bodies)
        .map(|(sequence, body)| {
            let mut datagram = Datagram::new(*b"0000000001", sequence);
            assert!(datagram.push(&Message { symbol: 1, timestamp_ns: sequence, body: *body }));
            datagram
        })
        .collect();
    group.bench_function("parse_per_datagram", |bench| {
        bench.iter(|| {
            for datagram in &datagrams {
                let packet = Packet::parse(datagram.as_slice()).unwrap();
                for message in packet.messages() {
                    let _ = black_box(message);
                }
            }
        });
    });
    let limits =
        Limits { quantity: 1_000, notional: u64::MAX, collar_bps: 500, rate: 0, position: 0, data_age_ns: 0 };
    group.bench_function("trader_per_datagram", |bench| {
        bench.iter_batched_ref(
            || Trader::new(1, limits, 64),
            |trader| {
                for datagram in &datagrams {
                    trader.on_datagram(datagram.as_slice());
                    black_box(trader.next_order(0));
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, book, matching, flow);
criterion_main!(benches);
