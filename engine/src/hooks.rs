//! What an observer of these processes may rely on.
//!
//! | Thing | Promise |
//! |---|---|
//! | process | `demo` starts its processes as `paper-publish`, `paper-engine` and `paper-exchange`, and so is their main thread's comm |
//! | engine's market data thread | comm [`MD_THREAD`]; receives, decides, sends |
//! | engine's ack thread | comm [`ACK_THREAD`]; receives what the exchange answers |
//! | market data in | UDP, `recvfrom`, one datagram a call |
//! | orders out | TCP with `TCP_NODELAY`, `sendto`, one order a call; a heartbeat after a second without |
//! | acks and fills in | TCP, `recvfrom` |
//! | block mode | `recvfrom` blocks, and returns `EAGAIN` after [`RECEIVE_TIMEOUT`] without data |
//! | epoll mode | `epoll_wait`, at most [`RECEIVE_TIMEOUT`]; then `recvfrom` until `EAGAIN` |
//! | spin mode | `recvfrom` never blocks and returns `EAGAIN` at once when there is no data |
//! | clock | every stamp is `CLOCK_MONOTONIC` in ns, as `bpf_ktime_get_ns` gives |

use std::time::Duration;

/// Name of the engine's market data thread.
pub const MD_THREAD: &str = "md";

/// Name of the engine's ack thread.
pub const ACK_THREAD: &str = "ack";

/// How long a receive call waits in block mode, and `epoll_wait` in epoll mode; bounds how late a stop is noticed.
pub const RECEIVE_TIMEOUT: Duration = Duration::from_millis(50);
