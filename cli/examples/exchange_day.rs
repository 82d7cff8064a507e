//! Makes `cli/data/exchange-day.log`, the input that ships with `consort demo`:
//!
//! ```text
//! cargo run -p consort-cli --example exchange_day > cli/data/exchange-day.log
//! ```
//!
//! A small exchange, one trading day, five instruments. Traders place limit orders and cancel some; a price-time
//! matching engine trades them against each other; every event is a line. Such a log is what replicated matching
//! engines multicast, and the reason why they need one order: two replicas that swap two lines end the day with
//! different books. The traders follow a fixed rule (a linear congruential sequence), so that the same file comes out on every
//! machine; a test holds the shipped file against this program.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::Write as _;

/// A resting order.
struct Order {
    id: u32,
    trader: usize,
    lots: u32,
}

/// One side of a book: price levels, best first; orders at a level in order of time.
type Side = Vec<(u32, VecDeque<Order>)>;

struct Book {
    symbol: &'static str,
    name: &'static str,
    /// In hundredths, like all prices.
    reference: u32,
    buy: Side,
    sell: Side,
    traded: u64,
}

const TRADERS: [&str; 9] = ["Ada", "Böhm", "Chen", "Díaz", "Eze", "Fjord", "Gupta", "Hõim", "Ito"];
const EVENTS: u32 = 3_400;

/// The traders' rule: x' = a·x + c mod 2^64 (Knuth's MMIX constants), its upper half taken.
struct Whim(u64);

impl Whim {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let upper = self.0 >> 32;
        u32::try_from((upper * u64::from(bound)) >> 32).unwrap_or(0)
    }
}

struct Price(u32);

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// Milliseconds since midnight, as a clock shows them.
struct Clock(u32);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        write!(f, "{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, self.0 % 1000)
    }
}

/// The day, as text.
pub fn day() -> Result<String, fmt::Error> {
    let mut out = String::new();
    let mut books = [
        ("ALD", "Alder Timber", 3_125),
        ("BRK", "Brook Water", 840),
        ("CPR", "Copperfield Wire", 11_210),
        ("DLT", "Delta Ferries", 5_475),
        ("ELM", "Elm & Ash Furniture", 1_990),
    ]
    .map(|(symbol, name, reference)| Book {
        symbol,
        name,
        reference,
        buy: Vec::new(),
        sell: Vec::new(),
        traded: 0,
    });
    writeln!(out, "# One day of a small exchange: N new order, T trade, X cancelled, S state of the book")?;
    for book in &books {
        writeln!(
            out,
            "# {}  {:<20} opens at {:>7}",
            book.symbol,
            book.name,
            Price(book.reference).to_string()
        )?;
    }
    let mut whim = Whim(2026);
    let mut clock = 9 * 3_600_000;
    let mut live: Vec<(usize, u32)> = Vec::new();
    for event in 1..=EVENTS {
        clock += 1 + whim.below(17_000);
        if event % 200 == 0 {
            // A blank line, then every book's state: what a late joiner would start from.
            writeln!(out)?;
            for book in &books {
                state(&mut out, clock, book)?;
            }
            writeln!(out)?;
        }
        let at = usize::try_from(whim.below(5)).unwrap_or(0);
        if live.len() > 40 && whim.below(10) < 3 {
            let index = usize::try_from(whim.below(u32::try_from(live.len()).unwrap_or(1))).unwrap_or(0);
            let (at, id) = live.swap_remove(index);
            cancel(&mut out, clock, &mut books[at], id)?;
            continue;
        }
        let trader = usize::try_from(whim.below(9)).unwrap_or(0);
        let lots = 10 * (1 + whim.below(25));
        let buys = whim.below(2) == 0;
        // Around the reference, a little towards the own side, so that most orders rest and some trade.
        let spread = books[at].reference / 40;
        let base = books[at].reference - if buys { spread } else { spread / 2 };
        let price = base + whim.below(spread * 3 / 2 + 1);
        place(&mut out, clock, &mut books[at], event, buys, Order { id: event, trader, lots }, price)?;
        if rests(&books[at], event) {
            live.push((at, event));
        }
        live.retain(|&(at, id)| rests(&books[at], id));
    }
    writeln!(out)?;
    for book in &books {
        writeln!(
            out,
            "# {}  closes at {:>7} after {:>6} lots",
            book.symbol,
            Price(book.reference).to_string(),
            book.traded
        )?;
    }
    Ok(out)
}

fn rests(book: &Book, id: u32) -> bool {
    book.buy.iter().chain(&book.sell).any(|(_, level)| level.iter().any(|order| order.id == id))
}

fn place(
    out: &mut String,
    clock: u32,
    book: &mut Book,
    id: u32,
    buys: bool,
    mut order: Order,
    price: u32,
) -> fmt::Result {
    let verb = if buys { "buys" } else { "sells" };
    let (name, lots) = (TRADERS[order.trader], order.lots);
    writeln!(out, "{} N {id:05} {} {name} {verb} {lots} at {}", Clock(clock), book.symbol, Price(price))?;
    let (own, other) = if buys { (&mut book.buy, &mut book.sell) } else { (&mut book.sell, &mut book.buy) };
    while order.lots > 0 {
        let Some((best, level)) = other.first_mut() else { break };
        if if buys { *best > price } else { *best < price } {
            break;
        }
        let Some(resting) = level.front_mut() else { break };
        let lots = order.lots.min(resting.lots);
        let (buyer, seller) =
            if buys { (order.trader, resting.trader) } else { (resting.trader, order.trader) };
        let (from, to) = (TRADERS[seller], TRADERS[buyer]);
        writeln!(
            out,
            "{} T {id:05} {} {lots} at {} from {from} to {to} (against {:05})",
            Clock(clock),
            book.symbol,
            Price(*best),
            resting.id
        )?;
        book.traded += u64::from(lots);
        book.reference = *best;
        order.lots -= lots;
        resting.lots -= lots;
        if resting.lots == 0 {
            level.pop_front();
        }
        if level.is_empty() {
            other.remove(0);
        }
    }
    if order.lots > 0 {
        let at = own.partition_point(|(level, _)| if buys { *level > price } else { *level < price });
        if own.get(at).is_none_or(|(level, _)| *level != price) {
            own.insert(at, (price, VecDeque::new()));
        }
        own[at].1.push_back(order);
    }
    Ok(())
}

fn cancel(out: &mut String, clock: u32, book: &mut Book, id: u32) -> fmt::Result {
    for side in [&mut book.buy, &mut book.sell] {
        for level in side.iter_mut() {
            if let Some(at) = level.1.iter().position(|order| order.id == id) {
                let lots = level.1.remove(at).map_or(0, |order| order.lots);
                writeln!(
                    out,
                    "{} X {id:05} {} {lots} left at {}",
                    Clock(clock),
                    book.symbol,
                    Price(level.0)
                )?;
            }
        }
        side.retain(|(_, level)| !level.is_empty());
    }
    Ok(())
}

fn state(out: &mut String, clock: u32, book: &Book) -> fmt::Result {
    write!(out, "{} S {}", Clock(clock), book.symbol)?;
    for (name, side) in [("bid", &book.buy), ("ask", &book.sell)] {
        write!(out, "  {name}")?;
        for (price, level) in side.iter().take(3) {
            write!(out, " {}×{}", level.iter().map(|order| order.lots).sum::<u32>(), Price(*price))?;
        }
        if side.is_empty() {
            write!(out, " –")?;
        }
    }
    writeln!(out)
}

#[allow(dead_code)] // the test that includes this file calls `day` alone
fn main() -> Result<(), Box<dyn std::error::Error>> {
    std::io::stdout().write_all(day()?.as_bytes())?;
    Ok(())
}
