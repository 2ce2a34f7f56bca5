//! After warm-up nothing on the way of an order or a market data message allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use paper_engine::book::{Order, Side};
use paper_engine::flow::Flow;
use paper_engine::matching::{Matcher, NewOrder, OrderType, Replacement};
use paper_engine::md::{Datagram, Message};
use paper_engine::order_entry::{Response, Update};
use paper_engine::risk::Limits;
use paper_engine::trader::Trader;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting what the calling thread asks for.
struct Counting;

fn count() {
    // Not there any more while the thread ends; nothing is measured then.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and returns how often it allocated.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

/// Every kind of order and request, over and over, with a book that stays bounded.
fn trade(matcher: &mut Matcher, orders: std::ops::Range<u64>) -> u64 {
    let mut events = 0;
    for id in orders {
        let order_type =
            [OrderType::Limit, OrderType::PostOnly, OrderType::Ioc, OrderType::Fok, OrderType::Market]
                [(id % 5) as usize];
        let side = if id % 2 == 0 { Side::Buy } else { Side::Sell };
        let price = 1_000 + (id * 7 % 40) as u32;
        let order = Order { id, owner: (id % 4) as u32, side, price, quantity: 1 + (id % 9) as u32 };
        matcher.submit(NewOrder { order, order_type }, |_| events += 1);
        if id % 3 == 0 && id > 10 {
            let replacement =
                Replacement { id: id + (1 << 40), quantity: 3, price, order_type: OrderType::Limit };
            let _ = matcher.replace(id - 5, replacement, |_| events += 1);
            let _ = matcher.cancel(id - 6, 1, |_| events += 1);
        }
        if id > 200 {
            for old in [id - 200, id - 200 + (1 << 40)] {
                let _ = matcher.cancel(old, 0, |_| events += 1);
            }
        }
    }
    events
}

#[test]
fn matching_allocates_nothing_after_warm_up() {
    let mut matcher = Matcher::with_capacity(4_096);
    trade(&mut matcher, 1..20_000);
    let count = allocations(|| assert!(trade(&mut matcher, 20_000..200_000) > 200_000));
    assert_eq!(count, 0);
}

#[test]
fn the_way_from_a_datagram_to_an_order_allocates_nothing_after_warm_up() {
    const SYMBOLS: u16 = 5;
    let limits = Limits {
        quantity: 1_000,
        notional: u64::MAX,
        collar_bps: 500,
        rate: 1_000_000,
        position: 100_000_000,
        data_age_ns: u64::MAX,
    };
    let mut trader = Trader::new(SYMBOLS, limits, 64);
    let mut flow = Flow::new(3, 10_000.0, SYMBOLS);
    let mut orders = 0;
    let mut run = |messages: std::ops::Range<u64>| {
        for sequence in messages {
            let planned = flow.next().unwrap();
            let mut datagram = Datagram::new(*b"0000000001", sequence);
            let message = Message { symbol: planned.symbol, timestamp_ns: sequence, body: planned.body };
            assert!(datagram.push(&message));
            trader.on_datagram(datagram.as_slice());
            while let Some(order) = trader.next_order(sequence) {
                orders += 1;
                trader.sent(order.reference, sequence);
                let executed = Update::Executed { quantity: order.quantity, price: order.price, trade: 1 };
                for update in [Update::Accepted, executed] {
                    let reference = order.reference;
                    let answer = Response::Order { sequence: 1, timestamp_ns: 0, reference, update };
                    trader.on_response(&answer, sequence);
                }
            }
        }
        orders
    };
    run(1..50_000);
    let mut sent = 0;
    let count = allocations(|| sent = run(50_000..200_000));
    assert!(sent > 1_000, "{sent} orders");
    assert_eq!(count, 0);
}
