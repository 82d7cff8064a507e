//! From publishes to a mirror, without sockets: [`Outgoing`] and [`Incoming`] back to back, with links that take what
//! they like and streams that are cut and damaged anywhere.

use consort_dataplane::fabric::FABRIC_PAGE;
use consort_dataplane::memory::{Segment, WORD};
use consort_dataplane::names::Slot;
use proptest::prelude::*;

use super::feed::{feed, feed_expecting, forge, fuzz_frames};
use super::frame::{Damage, HEADER};
use super::incoming::{Incoming, Progress, STAGE};
use super::outgoing::{MAX_FRAME, Outgoing, Sums};
use super::relay::{Origin, Relays};

const SALT: u32 = 0xC0FF_EE00;
const SIZE: usize = 1 << 20;

/// Words: how many records the ring has, then two counters that are published in this order, always.
const HEAD: usize = FABRIC_PAGE;
const FIRST: usize = FABRIC_PAGE + 64;
const SECOND: usize = FABRIC_PAGE + 1024;
const RING: usize = 2 * FABRIC_PAGE;

/// A node that publishes records as a session does, and one link of it.
struct Writer {
    segment: Segment,
    outgoing: Outgoing,
    /// The end of each record.
    ends: Vec<usize>,
    counter: u64,
}

impl Writer {
    fn new() -> Self {
        let mut outgoing = Outgoing::new();
        outgoing.open(SALT);
        Self { segment: Segment::private(SIZE), outgoing, ends: vec![RING], counter: 0 }
    }

    /// A record of `words`, published before the head that covers it.
    fn record(&mut self, words: usize) {
        let start = *self.ends.last().unwrap();
        let end = start + words * WORD;
        if end > SIZE {
            return;
        }
        for at in (start..end).step_by(WORD) {
            self.segment.store(at, ring_word(at));
        }
        for part in (start..end).step_by(MAX_FRAME) {
            let mut sums = Sums::new(&self.segment, part..(part + MAX_FRAME).min(end));
            self.outgoing.publish_ring(&mut sums);
        }
        self.ends.push(end);
        self.segment.store(HEAD, self.ends.len() as u64 - 1);
        self.outgoing.publish_words(HEAD..HEAD + WORD);
    }

    /// The counters go on: the first is never behind the second for who reads the second first.
    fn count(&mut self) {
        self.counter += 1;
        self.segment.store(FIRST, self.counter);
        self.outgoing.publish_words(FIRST..FIRST + WORD);
        self.segment.store(SECOND, self.counter);
        self.outgoing.publish_words(SECOND..SECOND + WORD);
    }

    /// What a socket with room for `most` bytes takes of the current batch.
    fn send(&mut self, most: usize) -> Vec<u8> {
        if !self.outgoing.fill(&self.segment) {
            return Vec::new();
        }
        let bytes = self.gathered();
        let taken = most.min(bytes.len());
        self.outgoing.on_sent(taken);
        bytes[..taken].to_vec()
    }

    fn send_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.outgoing.has_work() {
            all.extend(self.send(usize::MAX));
        }
        all
    }

    fn gathered(&self) -> Vec<u8> {
        let bytes = self.outgoing.gathered(&self.segment);
        assert_eq!(bytes.len(), self.outgoing.batch_left());
        if let Some(one) = self.outgoing.as_one() {
            assert_eq!(one, bytes);
        }
        bytes
    }
}

fn ring_word(at: usize) -> u64 {
    (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// What a reader of the mirror may rely on, whatever has come so far (F1).
fn look(mirror: &Segment, ends: &[usize]) -> (u64, u64) {
    let head = mirror.load(HEAD);
    let end = ends[usize::try_from(head).unwrap()];
    for at in (RING..end).step_by(WORD) {
        assert_eq!(mirror.load(at), ring_word(at), "head {head} vouches for the word at {at}");
    }
    let second = mirror.load(SECOND);
    let first = mirror.load(FIRST);
    assert!(first == second, "{first} and {second} are published together");
    (head, first)
}

#[derive(Clone, Debug)]
enum Step {
    Record(usize),
    Count,
    Send(usize),
    Receive(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..40_usize).prop_map(Step::Record),
        1 => (1..9_000_usize).prop_map(Step::Record),
        1 => Just(Step::Record(40_000)),
        3 => Just(Step::Count),
        4 => (0..3_000_usize).prop_map(Step::Send),
        2 => Just(Step::Send(usize::MAX)),
        4 => (0..3_000_usize).prop_map(Step::Receive),
        2 => Just(Step::Receive(usize::MAX)),
    ];
    proptest::collection::vec(step, 1..120)
}

/// A stream of a few frames of each kind, and the writer that made it.
fn sample(words: &[usize]) -> (Writer, Vec<u8>) {
    let mut writer = Writer::new();
    let mut stream = Vec::new();
    for words in words {
        writer.record(*words);
        writer.count();
        stream.extend(writer.send_all());
    }
    (writer, stream)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// F1 over a link that takes and gives what it likes.
    #[test]
    fn what_is_published_arrives_in_order_however_it_is_cut(steps in steps()) {
        let mut writer = Writer::new();
        let mirror = Segment::private(SIZE);
        let mut incoming = Incoming::new(mirror.clone(), SALT);
        let mut under_way = Vec::new();
        let mut last = (0, 0);
        let mut receive = |under_way: &mut Vec<u8>, most: usize, ends: &[usize]| {
            let now = most.min(under_way.len());
            feed(&mut incoming, &under_way[..now]).unwrap();
            under_way.drain(..now);
            let seen = look(&mirror, ends);
            assert!(seen.0 >= last.0 && seen.1 >= last.1, "{seen:?} after {last:?}");
            last = seen;
        };
        for step in steps {
            match step {
                Step::Record(words) => writer.record(words),
                Step::Count => writer.count(),
                Step::Send(most) => under_way.extend(writer.send(most)),
                Step::Receive(most) => receive(&mut under_way, most, &writer.ends),
            }
        }
        under_way.extend(writer.send_all());
        receive(&mut under_way, usize::MAX, &writer.ends);
        for at in (FABRIC_PAGE..SIZE).step_by(WORD) {
            prop_assert_eq!(mirror.load(at), writer.segment.load(at), "at {}", at);
        }
    }

    /// Nothing of garbage is visible, whatever it is and however it comes.
    #[test]
    fn garbage_breaks_the_stream(bytes in proptest::collection::vec(any::<u8>(), HEADER..2_000), cut in 1..200_usize) {
        let mirror = Segment::private(SIZE);
        let mut incoming = Incoming::new(mirror.clone(), SALT);
        let result: Result<Vec<_>, _> = bytes.chunks(cut).map(|piece| feed(&mut incoming, piece)).collect();
        prop_assert_eq!(result, Err(Damage::HeaderCheck));
        prop_assert!((0..SIZE).step_by(WORD).all(|at| mirror.load(at) == 0));
    }

    /// Damage anywhere, of any shape up to a burst of 32 bits: never a wrong byte that a word vouches for.
    #[test]
    fn damage_in_a_large_stream_breaks_it(at in 0.0..1.0_f64, pattern in 1..=u32::MAX, cut in 1..100_000_usize) {
        let (writer, mut stream) = sample(&[3, 5_000, 1, 33_000, 8]);
        let at = ((stream.len() - 4) as f64 * at) as usize;
        for (byte, flip) in stream[at..].iter_mut().zip(pattern.to_le_bytes()) {
            *byte ^= flip;
        }
        let mirror = Segment::private(SIZE);
        let mut incoming = Incoming::new(mirror.clone(), SALT);
        let mut broke = false;
        for piece in stream.chunks(cut) {
            broke = feed(&mut incoming, piece).is_err();
            look(&mirror, &writer.ends);
            if broke {
                break;
            }
        }
        prop_assert!(broke, "damage at {} went unnoticed", at);
    }

    /// Frames with right checks and hostile numbers; see `hw/fuzz` for more of them.
    #[test]
    fn forged_frames_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz_frames(&bytes);
    }
}

#[test]
fn each_flipped_bit_of_a_stream_breaks_it_and_shows_nothing_wrong() {
    // Small frames, all gathered in the stage; and a large one, received in place.
    for (words, step) in [(&[2, 1, 4][..], 1), (&[1_100, 1][..], 31)] {
        let (writer, stream) = sample(words);
        for bit in (0..stream.len() * 8).step_by(step) {
            let mut damaged = stream.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mirror = Segment::private(SIZE);
            let mut incoming = Incoming::new(mirror.clone(), SALT);
            let mut broke = false;
            for piece in damaged.chunks(97) {
                broke = feed(&mut incoming, piece).is_err();
                look(&mirror, &writer.ends);
                if broke {
                    break;
                }
            }
            assert!(broke, "bit {bit} of {}", stream.len() * 8);
        }
    }
}

#[test]
fn a_frame_lost_doubled_or_swapped_breaks_the_stream() {
    let mut writer = Writer::new();
    let frames: Vec<_> = (0..3)
        .map(|_| {
            writer.count();
            writer.send_all()
        })
        .collect();
    for order in [&[0, 2][..], &[0, 0], &[1, 0], &[0, 1, 1]] {
        let mut incoming = Incoming::new(Segment::private(SIZE), SALT);
        let result: Result<Vec<_>, _> = order.iter().map(|at| feed(&mut incoming, &frames[*at])).collect();
        // The salt is right, the sequence is not; both are under the header's check.
        assert!(matches!(result, Err(Damage::Sequence { .. })), "{order:?}: {result:?}");
    }
}

#[test]
fn a_busy_link_gets_the_latest_words_once_and_few_large_frames() {
    let mut writer = Writer::new();
    writer.count();
    assert!(writer.outgoing.fill(&writer.segment), "the link is busy with this from now on");
    let under_way = writer.gathered();
    for _ in 0..500 {
        writer.record(4);
        writer.count();
    }
    writer.outgoing.on_sent(under_way.len());
    let rest = writer.send_all();
    let records = 500 * 4 * WORD;
    assert!(rest.len() < records + 400, "{} bytes for {records} of records", rest.len());
    let mirror = Segment::private(SIZE);
    let mut incoming = Incoming::new(mirror.clone(), SALT);
    feed(&mut incoming, &under_way).unwrap();
    assert_eq!(look(&mirror, &writer.ends), (0, 1));
    feed(&mut incoming, &rest).unwrap();
    assert_eq!(look(&mirror, &writer.ends), (500, 501));
}

#[test]
fn words_are_not_put_off_by_a_stream_of_ring_bytes() {
    let mut writer = Writer::new();
    for _ in 0..100 {
        writer.record(1024); // 8 KiB each
    }
    let stream = writer.send_all();
    let mirror = Segment::private(SIZE);
    let mut incoming = Incoming::new(mirror.clone(), SALT);
    let mut heads = vec![0];
    for piece in stream.chunks(4096) {
        feed(&mut incoming, piece).unwrap();
        let (head, _) = look(&mirror, &writer.ends);
        if heads.last() != Some(&head) {
            heads.push(head);
        }
    }
    assert!(heads.len() > 15 && heads.last() == Some(&100), "the head came on by steps: {heads:?}");
}

#[test]
fn words_too_many_for_the_stage_come_in_one_go() {
    let mut writer = Writer::new();
    for at in (FABRIC_PAGE..SIZE).step_by(WORD) {
        writer.segment.store(at, 5);
    }
    writer.outgoing.publish_words(FABRIC_PAGE..SIZE);
    let stream = writer.send_all();
    let mirror = Segment::private(SIZE);
    let mut incoming = Incoming::new(mirror.clone(), SALT);
    let (last, most) = stream.split_last().unwrap();
    assert_eq!(feed(&mut incoming, most), Ok(Progress::default()));
    assert!((0..SIZE).step_by(WORD).all(|at| mirror.load(at) == 0), "none before all");
    assert_eq!(feed(&mut incoming, &[*last]), Ok(Progress { changed: true, ended: false }));
    assert!((FABRIC_PAGE..SIZE).step_by(WORD).all(|at| mirror.load(at) == 5));
}

#[test]
fn nothing_may_follow_a_goodbye() {
    let mut writer = Writer::new();
    writer.count();
    writer.outgoing.say_goodbye();
    let mut stream = writer.send_all();
    assert!(!writer.outgoing.has_work());
    let mut incoming = Incoming::new(Segment::private(SIZE), SALT);
    assert_eq!(feed(&mut incoming, &stream), Ok(Progress { changed: true, ended: true }));
    stream.push(0);
    let mut incoming = Incoming::new(Segment::private(SIZE), SALT);
    assert_eq!(feed(&mut incoming, &stream), Err(Damage::AfterGoodbye));
}

#[test]
fn a_huge_length_allocates_nothing() {
    // Words that would fill the segment, announced with right checks and never sent.
    let mut incoming = Incoming::new(Segment::private(SIZE), SALT);
    let mut frame = forge(SALT, 0, 2, 1, (8 + SIZE - FABRIC_PAGE) as u64, &[]);
    frame.extend([0; 100]);
    assert_eq!(feed(&mut incoming, &frame), Ok(Progress::default()));
    assert!(incoming.gathered() < 4096, "memory follows the bytes that came, not the length");
}

/// A writer that relays `words` of another's ring and then counts, so that something comes behind; and its stream.
fn relayed(words: usize) -> (Segment, Vec<u8>) {
    let (mut writer, other) = (Writer::new(), Segment::private(SIZE));
    let range = RING..RING + words * WORD;
    for at in range.clone().step_by(WORD) {
        other.store(at, ring_word(at));
    }
    for part in range.clone().step_by(MAX_FRAME) {
        let mut sums = Sums::new(&other, part..(part + MAX_FRAME).min(range.end));
        writer.outgoing.relay(ORIGIN, &mut sums, &writer.segment);
    }
    writer.count();
    (other, writer.send_all())
}

const ORIGIN: Origin = Origin(5 << 32 | 1);

/// Where those bytes are expected, and the memory that they go to.
fn expecting() -> (Relays, Segment) {
    let (mut relays, memory) = (Relays::new(), Segment::private(SIZE));
    relays.on_link(Slot(3), ORIGIN, memory.clone());
    relays.allow(Slot(3), RING..SIZE, Some(Slot(0)));
    (relays, memory)
}

#[test]
fn relayed_bytes_land_in_the_mirror_of_their_origin_whatever_their_size() {
    for words in [1, 60, 1_100, 40_000] {
        let (other, stream) = relayed(words);
        for cut in [97, 5_000, stream.len()] {
            let (relays, memory) = expecting();
            let mirror = Segment::private(SIZE);
            let mut incoming = Incoming::new(mirror.clone(), SALT);
            for piece in stream.chunks(cut) {
                feed_expecting(&mut incoming, piece, relays.over(Slot(0))).unwrap();
                let came = mirror.load(FIRST) == 1;
                let all = (RING..SIZE).step_by(WORD).all(|at| memory.load(at) == other.load(at));
                assert!(
                    all || !came,
                    "{words} words cut by {cut}: what comes behind the relay came before it"
                );
            }
            assert_eq!(mirror.load(FIRST), 1);
            assert!((RING..SIZE).step_by(WORD).all(|at| mirror.load(at) == 0), "not in the relaying one's");
        }
    }
}

#[test]
fn a_relay_that_is_not_expected_is_passed_over() {
    for words in [1, 1_100, 40_000] {
        let (_, stream) = relayed(words);
        let (relays, memory) = expecting();
        let mirror = Segment::private(SIZE);
        let mut incoming = Incoming::new(mirror.clone(), SALT);
        for piece in stream.chunks(3_001) {
            feed_expecting(&mut incoming, piece, relays.over(Slot(1))).unwrap();
        }
        assert_eq!(mirror.load(FIRST), 1, "what comes behind it is seen");
        assert!((0..SIZE).step_by(WORD).all(|at| memory.load(at) == 0));
    }
}

// F4, F6: of its origin, of another life of that one in the same place, and where the session that expected it is over.
#[test]
fn what_ends_in_the_middle_of_a_relay_drops_the_rest() {
    let (_, stream) = relayed(20_000);
    let end = |how, relays: &mut Relays| match how {
        "fenced" => relays.on_fence(Slot(3)),
        "linked anew" => {
            relays.on_link(Slot(3), ORIGIN, Segment::private(SIZE));
            relays.allow(Slot(3), RING..SIZE, Some(Slot(0)));
        }
        _ => relays.allow(Slot(3), RING..SIZE, None),
    };
    for how in ["fenced", "linked anew", "taken back"] {
        for at in [HEADER + 8, 3 * stream.len() / 4, stream.len() - 200] {
            let (mut relays, memory) = expecting();
            let mirror = Segment::private(SIZE);
            let mut incoming = Incoming::new(mirror.clone(), SALT);
            feed_expecting(&mut incoming, &stream[..at], relays.over(Slot(0))).unwrap();
            end(how, &mut relays);
            let frozen: Vec<_> = (0..SIZE).step_by(WORD).map(|at| memory.load(at)).collect();
            feed_expecting(&mut incoming, &stream[at..], relays.over(Slot(0))).unwrap();
            assert_eq!(mirror.load(FIRST), 1, "{how}: the link goes on");
            let mut words = (0..SIZE).step_by(WORD).zip(frozen);
            assert!(words.all(|(at, word)| memory.load(at) == word), "{how}, cut at {at}");
        }
    }
}

#[test]
fn a_large_relay_that_is_dropped_comes_in_large_pieces() {
    let (_, stream) = relayed(20_000);
    let (relays, _) = expecting();
    let expected = relays.over(Slot(1));
    let mut incoming = Incoming::new(Segment::private(SIZE), SALT);
    let begun = stream.len() / 4;
    feed_expecting(&mut incoming, &stream[..begun], expected).unwrap();
    assert_eq!(incoming.room(expected).len(), STAGE);
    // Towards its end no more than what is likely to come behind it: the next may be one that is expected.
    let rest = stream.len() - 2_000;
    feed_expecting(&mut incoming, &stream[begun..rest], expected).unwrap();
    assert!(incoming.room(expected).len() < STAGE / 8);
}

#[test]
fn damage_in_a_relay_breaks_the_stream_expected_or_not() {
    let (_, stream) = relayed(1_500);
    for (by, bit) in
        [0, 1].into_iter().flat_map(|by| (0..stream.len() * 8).step_by(1_009).map(move |bit| (by, bit)))
    {
        let mut damaged = stream.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (relays, _) = expecting();
        let mut incoming = Incoming::new(Segment::private(SIZE), SALT);
        let result: Result<Vec<_>, _> = damaged
            .chunks(997)
            .map(|piece| feed_expecting(&mut incoming, piece, relays.over(Slot(by))))
            .collect();
        assert!(result.is_err(), "bit {bit} over link {by}");
    }
}
