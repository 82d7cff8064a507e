//! What members of a changing group tell of their lives, and what must hold of it (V1, V4, V5, D8 and D12 under `Atomic`).
//!
//! A [`Stay`] is one incarnation in the group: from the view that admits it to its end, whatever that was. A node that
//! rejoins begins another. The checkers merge: of each view the longest sequence is taken, and all others must begin it;
//! these sequences, one view after the other, are what the group delivered, and everything else is held against them.

use std::collections::{BTreeMap, BTreeSet};

/// One message as its payload tells it: from which process, and the how-many-eth of that process it is, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Numbered {
    /// The process. One that is started again has another number.
    pub process: u32,
    /// Which of its messages.
    pub number: u64,
}

/// A view and what was delivered in it, by one member.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chapter {
    /// The view's number.
    pub view: u64,
    /// Its members, in rank order: node and incarnation.
    pub members: Vec<(u32, u64)>,
    /// Places in the order, and messages.
    pub messages: Vec<(u64, Numbered)>,
}

/// One incarnation of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stay {
    /// Who, as its views call it.
    pub me: (u32, u64),
    /// In their order.
    pub chapters: Vec<Chapter>,
}

/// What one process sent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    /// How many messages it has begun to send.
    pub count: u64,
    /// The outcomes that say delivered: view and place, by message.
    pub delivered: BTreeMap<u64, (u64, u64)>,
    /// It was evicted at some time: what it had under way then may be lost.
    pub evicted: bool,
}

/// All that was recorded of one group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Records {
    /// All incarnations.
    pub stays: Vec<Stay>,
    /// What was sent, by process.
    pub sent: BTreeMap<u32, Sent>,
}

type Agreed<'a> = BTreeMap<u64, &'a Chapter>;

impl Records {
    /// Checks that views are agreed, the order is one, those who go on delivered the same and nobody else more, no message is
    /// delivered twice, out of its sender's order or without having been sent, none is missing, and outcomes are true.
    ///
    /// # Errors
    /// The first rule broken, and where.
    pub fn check(&self) -> Result<(), String> {
        let agreed = self.views()?;
        self.all_or_nothing(&agreed)?;
        self.senders(&agreed)?;
        self.outcomes(&agreed)
    }

    /// V1: one view of a number; and of each, the longest sequence.
    fn views(&self) -> Result<Agreed<'_>, String> {
        let (mut agreed, mut lives) = (Agreed::new(), BTreeSet::new());
        for stay in &self.stays {
            let me = stay.me;
            if !lives.insert(me) {
                return Err(format!("views: two stays are both {me:?}"));
            }
            for chapter in &stay.chapters {
                if !chapter.members.contains(&me) {
                    return Err(format!(
                        "views: {me:?} is in view {} without being its member",
                        chapter.view
                    ));
                }
                let known = agreed.entry(chapter.view).or_insert(chapter);
                if known.members != chapter.members {
                    return Err(format!(
                        "views: view {} is of {:?}, and of {:?}",
                        chapter.view, known.members, chapter.members
                    ));
                }
                if known.messages.len() < chapter.messages.len() {
                    *known = chapter;
                }
            }
        }
        // A view that leaves the members as they are is told to nobody; any other is told to all who are in the one before and after.
        for stay in &self.stays {
            for pair in stay.chapters.windows(2) {
                let (from, to, me) = (pair[0].view, pair[1].view, stay.me);
                if to <= from || agreed.range(from + 1..to).next().is_some() {
                    return Err(format!("views: {me:?} went from view {from} to {to}"));
                }
            }
        }
        Ok(agreed)
    }

    /// V4, V5: whoever goes on has delivered all that anybody has, and everyone a beginning of it.
    fn all_or_nothing(&self, agreed: &Agreed<'_>) -> Result<(), String> {
        for stay in &self.stays {
            for (place, chapter) in stay.chapters.iter().enumerate() {
                let (me, view, whole) = (stay.me, chapter.view, &agreed[&chapter.view].messages);
                let parts = chapter.messages.iter().zip(whole).find(|(one, other)| one != other);
                if let Some((one, other)) = parts {
                    return Err(format!(
                        "total order: in view {view} {me:?} has {one:?}, another has {other:?}"
                    ));
                }
                let goes_on = place + 1 < stay.chapters.len();
                if goes_on && chapter.messages.len() < whole.len() {
                    return Err(format!(
                        "all or nothing: {me:?} went on from view {view} after {} of {} messages",
                        chapter.messages.len(),
                        whole.len()
                    ));
                }
            }
        }
        Ok(())
    }

    /// D13 and sender order, over all views.
    fn senders(&self, agreed: &Agreed<'_>) -> Result<(), String> {
        let mut next: BTreeMap<u32, u64> = BTreeMap::new();
        for (view, chapter) in agreed {
            for pair in chapter.messages.windows(2) {
                if pair[0].0 >= pair[1].0 {
                    return Err(format!("places: in view {view} {} comes before {}", pair[0].0, pair[1].0));
                }
            }
            for (_, message) in &chapter.messages {
                let Some(sent) = self.sent.get(&message.process).filter(|sent| message.number < sent.count)
                else {
                    return Err(format!("creation: {message:?} in view {view} was never sent"));
                };
                let due = next.entry(message.process).or_default();
                if message.number < *due {
                    return Err(format!(
                        "duplication or sender order: {message:?} in view {view}, {due} was next"
                    ));
                }
                // What is passed over must have been under way at an eviction.
                let told = sent.delivered.range(*due..message.number).next().is_some();
                if message.number > *due && (!sent.evicted || told) {
                    return Err(format!("loss: {message:?} in view {view}, {due} was next"));
                }
                *due = message.number + 1;
            }
        }
        Ok(())
    }

    /// D12: what a sender was told is so.
    fn outcomes(&self, agreed: &Agreed<'_>) -> Result<(), String> {
        for (&process, sent) in &self.sent {
            for (&number, &(view, place)) in &sent.delivered {
                let messages = agreed.get(&view).map_or(&[][..], |chapter| &chapter.messages);
                let there = messages.binary_search_by_key(&place, |(place, _)| *place);
                if there.ok().map(|at| messages[at].1) != Some(Numbered { process, number }) {
                    return Err(format!(
                        "outcome: process {process} was told that its message {number} is at {place} in view {view}"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chapter(view: u64, members: &[(u32, u64)], messages: &[(u64, u32, u64)]) -> Chapter {
        let messages = messages.iter().map(|&(at, process, number)| (at, Numbered { process, number }));
        Chapter { view, members: members.to_vec(), messages: messages.collect() }
    }

    /// Three members; the third is left behind in view 1 and comes again in view 3, with its message 1 lost.
    fn sound() -> Records {
        let (all, two, again) =
            ([(1, 10), (2, 20), (3, 30)], [(1, 10), (2, 20)], [(1, 10), (2, 20), (3, 31)]);
        let first = chapter(1, &all, &[(0, 1, 0), (1, 3, 0), (2, 2, 0)]);
        let second = chapter(2, &two, &[(0, 1, 1), (1, 2, 1)]);
        let third = chapter(3, &again, &[(0, 3, 2), (2, 1, 2)]);
        let whole = vec![first, second, third.clone()];
        let stays = vec![
            Stay { me: (1, 10), chapters: whole.clone() },
            Stay { me: (2, 20), chapters: whole },
            Stay { me: (3, 30), chapters: vec![chapter(1, &all, &[(0, 1, 0), (1, 3, 0)])] },
            Stay { me: (3, 31), chapters: vec![third] },
        ];
        let sent = |count, delivered: &[_], evicted| {
            let delivered = delivered.iter().copied().collect();
            Sent { count, delivered, evicted }
        };
        let sent = BTreeMap::from([
            (1, sent(3, &[(0, (1, 0)), (1, (2, 0)), (2, (3, 2))], false)),
            (2, sent(2, &[(0, (1, 2)), (1, (2, 1))], false)),
            (3, sent(3, &[(0, (1, 1)), (2, (3, 0))], true)),
        ]);
        Records { stays, sent }
    }

    type Tamper = fn(&mut Records);

    #[test]
    fn a_sound_record_passes() {
        assert_eq!(sound().check(), Ok(()));
        assert_eq!(Records::default().check(), Ok(()));
    }

    #[test]
    fn what_was_tampered_with_is_found() {
        let tampered: [(&str, Tamper); 14] = [
            ("views: view 2", |it| it.stays[0].chapters[1].members = vec![(1, 10), (3, 30)]),
            ("views: (1, 10) went", |it| it.stays[0].chapters.remove(1).messages.clear()),
            ("views: two stays", |it| it.stays[3].me = (3, 30)),
            ("without being its member", |it| it.stays[3].me = (3, 32)),
            ("total order", |it| it.stays[0].chapters[0].messages.swap(0, 1)),
            ("total order", |it| it.stays[2].chapters[0].messages[1].1.number = 1),
            ("total order", |it| {
                let _ = it.stays[1].chapters[0].messages.remove(1);
            }),
            // One that was stopped has delivered what the survivors don't have.
            ("all or nothing", |it| {
                let more = (3, Numbered { process: 3, number: 1 });
                let whole = it.stays[0].chapters[0].messages.clone();
                it.stays[2].chapters[0].messages = [whole, vec![more]].concat();
            }),
            ("all or nothing", |it| {
                let _ = it.stays[1].chapters[1].messages.pop();
            }),
            ("duplication", |it| {
                for stay in [0, 1, 3] {
                    let last = it.stays[stay].chapters.last_mut().unwrap();
                    last.messages.push((5, Numbered { process: 1, number: 0 }));
                }
            }),
            ("creation", |it| it.sent.get_mut(&2).unwrap().count = 1),
            ("loss", |it| it.sent.get_mut(&3).unwrap().evicted = false),
            ("loss", |it| {
                let _ = it.sent.get_mut(&3).unwrap().delivered.insert(1, (1, 3));
            }),
            ("outcome", |it| {
                let _ = it.sent.get_mut(&1).unwrap().delivered.insert(2, (3, 0));
            }),
        ];
        for (rule, tamper) in tampered {
            let mut records = sound();
            tamper(&mut records);
            let error = records.check().expect_err(rule);
            assert!(error.contains(rule), "{rule}: {error}");
        }
    }
}
