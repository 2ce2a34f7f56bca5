//! The paper sink: answers an order in the exchange's stead, without it going anywhere.
//!
//! What would trade at once against the market as it is, trades; the rest is canceled, since there is
//! no queue to wait in. The market does not get thinner by it.

use crate::matching::{CancelReason, OrderType, RejectReason};
use crate::order_entry::{EnterOrder, Reject, Update};

/// What is said about `order` when `tradable` of its shares would trade at `price` on average.
pub fn answers(order: &EnterOrder, tradable: u32, price: u32, trade: u64) -> impl Iterator<Item = Update> {
    let reject = |reason| [Some(Update::Rejected(Reject::Book(reason))), None, None];
    let answers = if order.quantity == 0 {
        reject(RejectReason::Quantity)
    } else if order.price == 0 && order.order_type != OrderType::Market {
        reject(RejectReason::Price)
    } else if order.order_type == OrderType::PostOnly && tradable > 0 {
        reject(RejectReason::WouldTrade)
    } else {
        let all_or_nothing = order.order_type == OrderType::Fok && tradable < order.quantity;
        let quantity = if all_or_nothing { 0 } else { tradable.min(order.quantity) };
        let rest = order.quantity - quantity;
        let canceled = Update::Canceled { quantity: rest, reason: CancelReason::NotFilled };
        [
            Some(Update::Accepted),
            (quantity > 0).then_some(Update::Executed { quantity, price, trade }),
            (rest > 0).then_some(canceled),
        ]
    };
    answers.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::Side;

    #[test]
    fn every_order_ends_with_its_answers() {
        let order = |order_type, quantity, price| EnterOrder {
            reference: 1,
            side: Side::Buy,
            quantity,
            symbol: 1,
            price,
            order_type,
            cause_ns: 0,
        };
        let executed = |quantity| Update::Executed { quantity, price: 7, trade: 9 };
        let canceled = |quantity| Update::Canceled { quantity, reason: CancelReason::NotFilled };
        let rejected = |reason| vec![Update::Rejected(Reject::Book(reason))];
        for (order, tradable, expected) in [
            (order(OrderType::Ioc, 10, 5), 10, vec![Update::Accepted, executed(10)]),
            (order(OrderType::Limit, 10, 5), 4, vec![Update::Accepted, executed(4), canceled(6)]),
            (order(OrderType::Fok, 10, 5), 4, vec![Update::Accepted, canceled(10)]),
            (order(OrderType::Market, 10, 0), 0, vec![Update::Accepted, canceled(10)]),
            (order(OrderType::PostOnly, 10, 5), 1, rejected(RejectReason::WouldTrade)),
            (order(OrderType::Ioc, 0, 5), 0, rejected(RejectReason::Quantity)),
            (order(OrderType::Ioc, 10, 0), 0, rejected(RejectReason::Price)),
        ] {
            assert_eq!(answers(&order, tradable, 7, 9).collect::<Vec<_>>(), expected, "{order:?}");
        }
    }
}
