use std::io::{Cursor, Error, Read};
use std::net::SocketAddr;

use consort_dataplane::names::{NodeId, Rank, Seq, ViewId};

use super::*;
use crate::view::{Member, Role, View};

fn pupil(attempt: u64) -> Pupil {
    Pupil { shard: ShardId::MAIN, node: NodeId(4), incarnation: Incarnation(7), attempt }
}

fn view(id: u64, nodes: &[(u32, u64)]) -> View {
    let address: SocketAddr = ([127, 0, 0, 1], 1).into();
    let member = |(node, life): &(u32, u64)| Member {
        node: NodeId(*node),
        incarnation: Incarnation(*life),
        address,
        role: Role::Data,
        domain: crate::view::Domain::default(),
    };
    View::of(ViewId(id), nodes.iter().map(member).collect())
}

/// Everything a teacher says to a pupil that takes all at once.
fn taught(state: &[u8], held: u64) -> Vec<Lesson> {
    let mut teacher = Teacher::new(Cursor::new(state.to_vec()), held);
    let mut lessons = Vec::new();
    while teacher.may_go_on() {
        lessons.push(teacher.next_lesson().unwrap());
        teacher.on_took(Took::Chunks(lessons.len() as u64));
    }
    assert!(teacher.is_done());
    lessons
}

#[test]
fn a_snapshot_goes_in_pieces_with_digests() {
    let state: Vec<u8> = (0..3 * CHUNK + 5).map(|at| (at % 251) as u8).collect();
    let lessons = taught(&state, 0);
    let mut digests = Vec::new();
    let mut bytes = Vec::new();
    for (at, lesson) in lessons[..4].iter().enumerate() {
        let Lesson::Chunk { number, digest: known, bytes: Some(piece) } = lesson else {
            panic!("{lesson:?}")
        };
        assert_eq!((*number, *known), (at as u64, digest(piece)));
        digests.push(*known);
        bytes.extend_from_slice(piece);
    }
    assert_eq!(bytes, state);
    let digest = whole(&digests);
    assert_eq!(lessons[4..], [Lesson::Whole { chunks: 4, len: state.len() as u64, digest }]);
}

#[test]
fn nothing_is_a_state_too() {
    assert_eq!(taught(&[], 0), [Lesson::Whole { chunks: 0, len: 0, digest: whole(&[]) }]);
}

#[test]
fn a_teacher_is_a_window_ahead_and_no_more() {
    let mut teacher = Teacher::new(std::io::repeat(3), 0);
    for _ in 0..WINDOW {
        assert!(teacher.may_go_on());
        teacher.next_lesson().unwrap();
    }
    assert!(!teacher.may_go_on());
    teacher.on_took(Took::Chunks(u64::MAX)); // more than was sent: it counts for what was
    for _ in 0..WINDOW {
        assert!(teacher.may_go_on());
        teacher.next_lesson().unwrap();
    }
    assert!(!teacher.may_go_on());
}

#[test]
fn what_the_pupil_has_is_offered_by_digest_and_sent_if_it_lacks_it() {
    let state = [vec![1; CHUNK], vec![2; CHUNK], vec![3; 9]].concat();
    let mut teacher = Teacher::new(Cursor::new(state), 2);
    for expected in 0..2 {
        let lesson = teacher.next_lesson().unwrap();
        assert!(
            matches!(lesson, Lesson::Chunk { number, bytes: None, .. } if number == expected),
            "{lesson:?}"
        );
    }
    assert!(matches!(teacher.next_lesson().unwrap(), Lesson::Chunk { number: 2, bytes: Some(_), .. }));
    assert!(matches!(teacher.next_lesson().unwrap(), Lesson::Whole { chunks: 3, .. }));
    let again = teacher.on_took(Took::Lacks(1));
    assert_eq!(
        again,
        Some(Lesson::Chunk { number: 1, digest: digest(&[2; CHUNK]), bytes: Some(vec![2; CHUNK]) })
    );
    assert_eq!(teacher.on_took(Took::Lacks(77)), None);
    teacher.on_took(Took::Chunks(2));
    assert_eq!(teacher.on_took(Took::Lacks(1)), None); // it has said that it has it
    assert!(!teacher.is_done());
    teacher.on_took(Took::Chunks(3));
    assert!(teacher.is_done());
}

#[test]
fn a_reader_that_fails_is_no_end() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(Error::other("the disk"))
        }
    }
    let mut teacher = Teacher::new(Cursor::new([1; 10]).chain(Fails), 0);
    assert!(teacher.next_lesson().is_err());
}

/// Entries as a pupil reads them, from pieces as they were sent.
fn read(pieces: &[Lesson]) -> Vec<(Entry, Vec<u8>)> {
    let mut bytes = Vec::new();
    for (at, piece) in pieces.iter().enumerate() {
        let Lesson::Tail { number, bytes: piece } = piece else { panic!("{piece:?}") };
        assert_eq!(*number, at as u64);
        bytes.extend_from_slice(piece);
    }
    let (mut entries, mut rest) = (Vec::new(), &bytes[..]);
    while let Some(len) = Entry::len(rest).unwrap() {
        let (entry, payload) = Entry::decode(&rest[..len]).unwrap();
        entries.push((entry, payload.to_vec()));
        rest = &rest[len..];
    }
    assert_eq!(rest, [0; 0]);
    entries
}

fn drain(tails: &mut Tails) -> Vec<Lesson> {
    std::iter::from_fn(|| tails.poll()).map(|(_, lesson)| lesson).collect()
}

#[test]
fn a_tail_tells_what_was_delivered_up_to_the_view_that_admits() {
    let mut tails = Tails::default();
    tails.message(ViewId(1), Seq(8), (Rank(0), NodeId(1)), b"before"); // nobody learns yet
    tails.begin(pupil(1));
    let long = vec![9; 2 * CHUNK];
    tails.message(ViewId(1), Seq(9), (Rank(1), NodeId(2)), &long);
    tails.view(&view(2, &[(1, 1)]));
    tails.view(&view(3, &[(1, 1), (4, 6)])); // another life of it
    tails.message(ViewId(3), Seq(0), (Rank(0), NodeId(1)), b"");
    tails.view(&view(4, &[(1, 1), (4, 7)]));
    tails.message(ViewId(4), Seq(0), (Rank(0), NodeId(1)), b"by ring");
    let entries = read(&drain(&mut tails));
    let message = |view, seq, rank, sender| Entry::Message {
        view: ViewId(view),
        seq: Seq(seq),
        rank: Rank(rank),
        sender: NodeId(sender),
    };
    assert_eq!(
        entries,
        [
            (message(1, 9, 1, 2), long),
            (Entry::View(view(2, &[(1, 1)])), vec![]),
            (Entry::View(view(3, &[(1, 1), (4, 6)])), vec![]),
            (message(3, 0, 0, 1), vec![]),
            (Entry::Admitted, vec![]),
        ]
    );
    assert!(tails.is_empty());
}

#[test]
fn a_tail_waits_for_its_pupil_and_gives_it_up_in_the_end() {
    let mut tails = Tails::default();
    tails.begin(pupil(1));
    let payload = vec![1; CHUNK];
    for _ in 0..2 * WINDOW {
        tails.message(ViewId(1), Seq(1), (Rank(0), NodeId(1)), &payload);
    }
    assert_eq!(drain(&mut tails).len() as u64, WINDOW);
    tails.on_taken(pupil(2), 5); // an attempt that is none
    assert_eq!(drain(&mut tails), []);
    tails.on_taken(pupil(1), 5);
    assert_eq!(drain(&mut tails).len(), 5);
    for _ in 0..(64 << 20) / CHUNK {
        tails.message(ViewId(1), Seq(1), (Rank(0), NodeId(1)), &payload);
    }
    let (of, lesson) = tails.poll().unwrap();
    assert_eq!(of, pupil(1));
    assert!(matches!(lesson, Lesson::Refused(_)), "{lesson:?}");
    assert!(tails.is_empty());
}

#[test]
fn torn_entries_are_found() {
    assert_eq!(Entry::len(&[1, 0, 0]), Ok(None));
    assert_eq!(Entry::len(&[255; 12]), Err(TornTail));
    assert_eq!(Entry::decode(&[1, 0, 0, 0, 0, 0, 0, 0]), Err(TornTail));
    assert_eq!(Entry::decode(&[1, 0, 0, 0, 0, 0, 0, 0, 99]), Err(TornTail));
}
