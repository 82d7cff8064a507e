//! Several nodes' links, joined by a network that delivers at once and in order, or not at all.

use std::collections::BTreeSet;

use super::*;
use crate::link::message::{Goodbye, Standing};
use crate::view::Role;

/// A node's port is its id.
fn address(node: u32) -> SocketAddr {
    ([10, 0, 0, 1], u16::try_from(node).unwrap()).into()
}

fn hello(node: u32, life: u64) -> Hello {
    Hello {
        cluster: "test".to_owned(),
        node: NodeId(node),
        incarnation: Incarnation(life),
        engaged: None,
        address: address(node),
        standing: Standing::Joining,
        role: Role::Data,
        fabric: "sim".to_owned(),
        guarantee: "atomic".to_owned(),
        ring_bytes: 4096,
        state: false,
        domain: Default::default(),
        groups: 0,
        offer: Vec::new(),
        held: None,
    }
}

/// Lets anybody in.
fn anybody(_: &Hello) -> Result<(), String> {
    Ok(())
}

type End = (u32, ConnectionId);

struct World {
    now: Time,
    nodes: BTreeMap<u32, Links>,
    /// Who listens where, beside each at its own address.
    doors: BTreeMap<SocketAddr, u32>,
    ends: BTreeMap<End, End>,
    /// Where dials go unanswered.
    silent: BTreeSet<SocketAddr>,
    /// All dials, in order.
    dials: Vec<(u32, SocketAddr)>,
    news: BTreeMap<u32, Vec<String>>,
    asked: Vec<End>,
    judge: fn(&Hello) -> Result<(), String>,
}

impl World {
    fn new(nodes: &[u32]) -> Self {
        let mut world = Self {
            now: Time(0),
            nodes: BTreeMap::new(),
            doors: BTreeMap::new(),
            ends: BTreeMap::new(),
            silent: BTreeSet::new(),
            dials: Vec::new(),
            news: BTreeMap::new(),
            asked: Vec::new(),
            judge: anybody,
        };
        for node in nodes {
            world.start(*node, 1);
        }
        world
    }

    fn start(&mut self, node: u32, life: u64) {
        let seed = [node as u8, life as u8].repeat(16).try_into().unwrap();
        let mut links = Links::new(NodeId(node), None, Random::new(seed));
        links.restart(self.now, Some(&hello(node, life)));
        self.nodes.insert(node, links);
        self.doors.insert(address(node), node);
    }

    /// The process dies; its machine closes its connections, or, if the machine is gone too, nobody does.
    fn crash(&mut self, node: u32, machine_too: bool) {
        self.nodes.remove(&node);
        let ends: Vec<_> = self.ends.keys().filter(|(of, _)| *of == node).copied().collect();
        for end in ends {
            let Some(other) = self.ends.remove(&end) else { continue };
            self.ends.remove(&other);
            if !machine_too {
                self.closed(other);
            }
        }
        self.settle();
    }

    fn closed(&mut self, (node, id): End) {
        if let Some(links) = self.nodes.get_mut(&node) {
            links.on_closed(id, self.now, "closed");
        }
    }

    fn tell(&mut self, node: u32, what: impl FnOnce(&mut Links, Time)) {
        what(self.nodes.get_mut(&node).unwrap(), self.now);
        self.settle();
    }

    fn know(&mut self, node: u32, other: u32) {
        self.tell(node, |links, now| links.know(NodeId(other), address(other), now));
    }

    /// Time passes, and each node is told in time of each date that it has.
    fn pass(&mut self, time: Duration) {
        let end = self.now.plus(time);
        loop {
            let due = self.nodes.values().filter_map(Links::due).min().filter(|due| *due <= end);
            self.now = due.unwrap_or(end).max(self.now);
            for links in self.nodes.values_mut() {
                links.on_time(self.now);
            }
            self.settle();
            if due.is_none() {
                return;
            }
        }
    }

    /// Carries to and fro until nothing is left to do.
    fn settle(&mut self) {
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        let mut more = true;
        while more {
            more = false;
            for id in &ids {
                more |= self.serve(*id);
            }
        }
    }

    fn serve(&mut self, node: u32) -> bool {
        let Some(links) = self.nodes.get_mut(&node) else { return false };
        let mut written = Vec::new();
        for id in links.talkative() {
            if self.ends.contains_key(&(node, id)) {
                written.push((id, std::mem::take(links.output(id).unwrap())));
            }
        }
        let request = links.poll_request();
        while let Some(news) = links.poll_news() {
            if let LinkNews::Asked(id, _) = &news {
                self.asked.push((node, *id));
            }
            self.news.entry(node).or_default().push(phrase(&news));
        }
        let idle = written.is_empty() && request.is_none();
        for (id, bytes) in written {
            self.carry((node, id), &bytes);
        }
        match request {
            Some(Request::Dial(id, to)) => self.dial((node, id), to),
            Some(Request::Close(id, last)) => {
                self.carry((node, id), &last);
                if let Some(other) = self.ends.remove(&(node, id)) {
                    self.ends.remove(&other);
                    self.closed(other);
                }
            }
            None => {}
        }
        !idle
    }

    fn dial(&mut self, dialler: End, to: SocketAddr) {
        self.dials.push((dialler.0, to));
        if self.silent.contains(&to) {
            return;
        }
        let node = self.doors.get(&to).copied();
        let accepted = node.and_then(|node| Some((node, self.nodes.get_mut(&node)?.on_accepted(self.now)?)));
        match accepted {
            Some(listener) => {
                self.ends.insert(dialler, listener);
                self.ends.insert(listener, dialler);
            }
            None => self.closed(dialler),
        }
    }

    fn carry(&mut self, from: End, bytes: &[u8]) {
        if let Some((node, id)) = self.ends.get(&from)
            && let Some(links) = self.nodes.get_mut(node)
        {
            links.on_bytes(*id, self.now, bytes, &self.judge);
        }
    }

    /// What a node was told since it was last asked for.
    fn news(&mut self, node: u32) -> Vec<String> {
        self.news.remove(&node).unwrap_or_default()
    }

    fn dials(&mut self, node: u32, to: SocketAddr) -> usize {
        let count = self.dials.iter().filter(|dial| **dial == (node, to)).count();
        self.dials.clear();
        count
    }

    /// A program that is no node dials one and asks.
    fn ask(&mut self, node: u32, question: Question) -> Option<Asker> {
        let id = self.nodes.get_mut(&node).unwrap().on_accepted(self.now)?;
        let asker = Connection::asking(None, [7; 32], question);
        let mut asker = Asker { end: (node, id), connection: asker, heard: Vec::new(), over: None };
        asker.talk(self);
        Some(asker)
    }
}

fn phrase(news: &LinkNews) -> String {
    match news {
        LinkNews::Up(hello) => format!("up {} life {}", hello.node, hello.incarnation.0),
        LinkNews::Down { node, incarnation, why } => format!("down {node} life {}: {why}", incarnation.0),
        LinkNews::Said(node, message) => format!("{node} says {message:?}"),
        LinkNews::Trouble(node, why) => format!("no {node}: {why}"),
        LinkNews::Unreached(address, why) => format!("nobody at {}: {why}", address.port()),
        LinkNews::Asked(_, question) => format!("asked for {question:?}"),
    }
}

struct Asker {
    end: End,
    connection: Connection,
    heard: Vec<Message>,
    over: Option<String>,
}

impl Asker {
    /// Until neither has anything to say, or the node closes.
    fn talk(&mut self, world: &mut World) {
        loop {
            let said = std::mem::take(self.connection.output());
            let links = world.nodes.get_mut(&self.end.0).unwrap();
            links.on_bytes(self.end.1, world.now, &said, &world.judge);
            let answer = links.output(self.end.1).map(std::mem::take).unwrap_or_default();
            if said.is_empty() && answer.is_empty() {
                break;
            }
            self.hear(&answer);
        }
        let links = world.nodes.get_mut(&self.end.0).unwrap();
        while let Some(request) = links.poll_request() {
            match request {
                Request::Close(id, last) if id == self.end.1 => {
                    self.hear(&last);
                    self.over.get_or_insert_with(|| "closed".to_owned());
                }
                other => panic!("{other:?}"),
            }
        }
        world.settle();
    }

    fn hear(&mut self, bytes: &[u8]) {
        if let Err(error) = self.connection.on_bytes(bytes, &mut self.heard) {
            self.over = Some(error.to_string());
        }
    }

    fn answer(&self) -> String {
        let text = |message: &Message| match message {
            Message::Answer { text, .. } => text.clone(),
            other => panic!("{other:?}"),
        };
        self.heard.iter().map(text).collect()
    }
}

#[test]
fn a_peer_that_is_told_of_is_dialled_until_it_is_there_and_again_when_it_is_lost() {
    let mut world = World::new(&[1]);
    world.know(1, 2);
    world.pass(Duration::from_secs(10));
    let news = world.news(1);
    assert!(news.len() >= 10 && news.iter().all(|news| news == "no 2: closed"), "{news:?}");
    assert!((10..20).contains(&world.dials(1, address(2))), "the pause grows to a second and no further");

    world.start(2, 1);
    world.pass(LONGEST_PAUSE);
    assert_eq!(world.news(1), ["up 2 life 1"]);
    assert_eq!(world.news(2), ["up 1 life 1"]);
    world.dials.clear();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.dials, [], "nobody dials who is there");
    assert_eq!(world.nodes[&1].due(), None);

    // A process that ends is seen at once (F5).
    world.crash(2, false);
    assert_eq!(world.news(1), ["down 2 life 1: closed"]);
    world.pass(Duration::ZERO);
    assert_eq!(world.dials(1, address(2)), 1, "without a pause");
    world.start(2, 2);
    world.pass(LONGEST_PAUSE);
    assert_eq!(world.news(1).pop().unwrap(), "up 2 life 2");
}

#[test]
fn who_is_told_of_again_is_dialled_where_it_is_now() {
    let mut world = World::new(&[1, 2]);
    // Dials to where it was go nowhere: without the news each would take the time of a handshake.
    let moved = address(99);
    world.silent.insert(moved);
    world.tell(1, |links, now| links.know(NodeId(2), moved, now));
    assert_eq!(world.news(1), [""; 0]);
    world.know(1, 2);
    assert_eq!(world.news(1), ["up 2 life 1"]);

    // A link that is up stays; the address counts when it is lost.
    world.silent.clear();
    world.doors.insert(moved, 2);
    world.tell(1, |links, now| links.know(NodeId(2), moved, now));
    assert_eq!(world.news(1), [""; 0]);
    world.dials.clear();
    world.tell(2, |links, _| links.forget(NodeId(1)));
    world.pass(Duration::ZERO);
    assert_eq!(world.dials(1, moved), 1);
    // Told the same once more, it is not dialled twice.
    world.tell(1, |links, now| links.know(NodeId(2), moved, now));
    assert_eq!(world.dials, []);
    world.know(1, 1);
    assert_eq!(world.dials, [], "nobody links to itself");
}

#[test]
fn who_is_forgotten_is_closed_and_dialled_no_more_and_nothing_of_it_is_told() {
    let mut world = World::new(&[1, 2]);
    world.know(1, 2);
    world.news(1);
    world.news(2);
    // What it said last and nobody has taken yet is gone, too; what it is told last still arrives.
    let links = world.nodes.get_mut(&2).unwrap();
    links.send(NodeId(1), &Message::Leaving);
    let (id, bytes) =
        links.talkative().pop().map(|id| (id, std::mem::take(links.output(id).unwrap()))).unwrap();
    world.carry((2, id), &bytes);
    world.tell(1, |links, _| {
        links.send(NodeId(2), &Message::Goodbye(Goodbye::Left));
        links.forget(NodeId(2));
    });
    assert_eq!(world.news(1), [""; 0]);
    // Node 2 has it for a guest, and tries for a while.
    assert_eq!(world.news(2), ["1 says Goodbye(Left)", "down 1 life 1: closed"]);
    world.dials.clear();
    world.judge = |_| Err("not wanted".to_owned());
    world.pass(Duration::from_secs(60));
    assert_eq!(world.dials(1, address(2)), 0);
    assert_eq!([1, 2].map(|node| world.nodes[&node].due()), [None; 2]);
    assert_eq!([1, 2].map(|node| world.nodes[&node].peers.len()), [0; 2]);
    // A dial that is under way is given up.
    world.silent.insert(address(3));
    world.know(1, 3);
    world.tell(1, |links, _| links.forget(NodeId(3)));
    assert!(world.nodes[&1].connections.is_empty());
}

#[test]
fn who_comes_by_itself_is_kept_if_nothing_speaks_against_it() {
    // Whichever of the two has the lower id, and so the choice.
    for [member, guest] in [[1, 2], [2, 1]] {
        let mut world = World::new(&[member, guest]);
        world.know(guest, member);
        assert_eq!(world.news(member), [format!("up {guest} life 1")]);
        world.tell(member, |links, _| links.send(NodeId(guest), &Message::Alive));
        assert_eq!(world.news(guest), [format!("up {member} life 1"), format!("{member} says Alive")]);

        // It is dialled when it is lost, at the address of its hello, for a while.
        world.dials.clear();
        world.crash(guest, false);
        world.pass(Duration::from_secs(60));
        assert!((5..12).contains(&world.dials(member, address(guest))));
        assert!(world.nodes[&member].peers.is_empty() && world.nodes[&member].due().is_none());

        // If it comes again it is as before; and from when it is told of, it stays.
        world.start(guest, 2);
        world.know(guest, member);
        assert_eq!(world.news(member).pop().unwrap(), format!("up {guest} life 2"));
        world.know(member, guest);
        world.crash(guest, false);
        world.pass(Duration::from_secs(60));
        assert!(world.dials(member, address(guest)) > 50);
    }
}

#[test]
fn who_is_judged_unfit_is_told_why_and_not_kept() {
    let mut world = World::new(&[1, 2]);
    world.judge = |hello| if hello.node == NodeId(2) { Err("no twos".to_owned()) } else { Ok(()) };
    world.know(2, 1);
    assert_eq!(world.news(2), ["no 1: no twos"]);
    assert_eq!(world.news(1), [""; 0], "who isn't known is no trouble");
    assert!(world.nodes[&1].peers.is_empty());
    world.know(1, 2);
    assert!(world.news(1).contains(&"no 2: no twos".to_owned()));
}

// S3: what comes by itself takes bounded room.
#[test]
fn there_are_so_many_guests_and_no_more() {
    let guests: Vec<_> = (2..).take(GUESTS + 1).collect();
    let mut world = World::new(&[1]);
    for guest in &guests {
        world.start(*guest, 1);
        world.know(*guest, 1);
        world.now = world.now.plus(Duration::from_millis(1));
    }
    let last = *guests.last().unwrap();
    assert_eq!(world.news(1).len(), GUESTS);
    assert!(world.news(last)[0].contains("is linked to 128 nodes already that are no members"));
    // Who is told of has its place, and leaves a guest's free.
    world.know(1, last);
    assert!(world.news(1).contains(&format!("up {last} life 1")));
    world.know(1, 2);
    let another = last + 1;
    world.start(another, 1);
    world.know(another, 1);
    assert!(world.news(1).contains(&format!("up {another} life 1")));
    assert_eq!(world.nodes[&1].peers.len(), GUESTS + 2);
}

// A late word about an old life is told apart from the new one's.
#[test]
fn a_new_life_takes_the_old_ones_place() {
    for [me, peer] in [[1, 2], [2, 1]] {
        let mut world = World::new(&[me, peer]);
        world.know(me, peer);
        world.know(peer, me);
        assert_eq!(world.news(me), [format!("up {peer} life 1")]);
        // Its machine died, so nobody tells; it is there again before the silence was noticed.
        world.crash(peer, true);
        assert_eq!(world.news(me), [""; 0]);
        world.start(peer, 2);
        world.know(peer, me);
        let [down, up] = world.news(me).try_into().unwrap();
        assert!(down.starts_with(&format!("down {peer} life 1: node {peer} was started again")), "{down}");
        assert_eq!(up, format!("up {peer} life 2"));
        world.pass(Duration::from_secs(60));
        assert_eq!(world.news(me), [""; 0]);
    }
}

// V7
#[test]
fn a_seed_is_dialled_until_its_hello_tells_who_lives_there() {
    for [me, other] in [[1, 2], [2, 1]] {
        let mut world = World::new(&[me]);
        // The seed's address is not the one that the node itself gives.
        let door = address(500);
        world.tell(me, |links, now| links.seed(door, now));
        world.pass(Duration::from_secs(3));
        let news = world.news(me);
        assert!(news.len() > 5 && news.iter().all(|news| news == "nobody at 500: closed"), "{news:?}");
        world.start(other, 1);
        world.doors.insert(door, other);
        world.pass(LONGEST_PAUSE);
        assert_eq!(world.news(me), [format!("up {other} life 1")]);
        assert_eq!(world.news(other), [format!("up {me} life 1")]);

        // Said again, it changes nothing: neither now nor when a later dial would count as a link anew.
        world.dials.clear();
        world.pass(HANDSHAKE * 2);
        world.tell(me, |links, now| links.seed(door, now));
        world.tell(me, |links, now| links.seed(address(other), now));
        world.pass(HANDSHAKE * 2);
        assert_eq!((world.news(me), world.dials.len()), (vec![], 0));

        // From there on it is known like any other: lost and found by its own address.
        world.crash(other, false);
        world.pass(Duration::from_secs(60));
        assert!(world.dials(me, address(other)) > 50);
        world.start(other, 2);
        world.pass(LONGEST_PAUSE);
        assert_eq!(world.news(me).pop().unwrap(), format!("up {other} life 2"));

        // And forgotten like any other; then the seed may be sought again.
        world.tell(me, |links, _| links.forget(NodeId(other)));
        world.judge = |_| Err("not wanted".to_owned());
        world.pass(Duration::from_secs(60));
        world.judge = anybody;
        world.dials.clear();
        world.tell(me, |links, now| links.seed(door, now));
        assert_eq!(world.dials(me, door), 1);
        assert_eq!(world.news(me).pop().unwrap(), format!("up {other} life 2"));
    }
}

#[test]
fn a_seed_that_is_this_node_itself_is_let_be() {
    let mut world = World::new(&[1]);
    world.tell(1, |links, now| links.seed(address(1), now));
    world.pass(Duration::from_secs(60));
    assert_eq!((world.dials(1, address(1)), world.news(1)), (1, vec![]));
    assert!(world.nodes[&1].connections.is_empty());
    // Another life of the same name is another matter, and judged.
    world.start(1, 2);
    world.doors.insert(address(500), 500);
    world.nodes.insert(500, {
        let mut links = Links::new(NodeId(1), None, Random::new([9; 32]));
        links.restart(world.now, Some(&hello(1, 3)));
        links
    });
    world.judge = |hello| Err(format!("two nodes call themselves {}", hello.node));
    world.tell(1, |links, now| links.seed(address(500), now));
    assert_eq!(world.news(1)[0], "nobody at 500: two nodes call themselves 1");
}

#[test]
fn a_seed_that_refuses_is_tried_again_and_seeds_are_dropped_when_they_are_needed_no_more() {
    let mut world = World::new(&[1, 2]);
    world.judge = |hello| if hello.node == NodeId(2) { Err("no twos".to_owned()) } else { Ok(()) };
    world.tell(1, |links, now| links.seed(address(2), now));
    world.pass(Duration::from_secs(2));
    let news = world.news(1);
    assert!(news.len() > 4 && news.iter().all(|news| news == "nobody at 2: no twos"), "{news:?}");
    world.silent.insert(address(2));
    world.pass(LONGEST_PAUSE);
    world.dials.clear();
    world.tell(1, |links, _| links.unseed());
    world.pass(Duration::from_secs(60));
    assert_eq!((world.dials(1, address(2)), world.nodes[&1].due()), (0, None));
    assert!(world.nodes[&1].connections.is_empty());
}

#[test]
fn a_new_start_keeps_whom_it_was_told_of_and_forgets_its_guests() {
    let mut world = World::new(&[1, 2, 3]);
    world.know(1, 2);
    world.know(3, 1);
    world.tell(1, |links, now| links.seed(address(4), now));
    world.news(1);
    world.judge = |hello| if hello.node == NodeId(3) { Err("no threes".to_owned()) } else { Ok(()) };
    world.tell(1, |links, now| links.restart(now, None));
    world.dials.clear();
    world.pass(Duration::from_secs(1));
    assert!(world.dials.iter().all(|(node, _)| *node != 1), "without a hello it dials nobody");
    assert!(world.news(2).contains(&"no 1: it is beginning anew and will answer in a moment".to_owned()));
    assert_eq!(world.news(1), [""; 0]);
    world.tell(1, |links, now| links.restart(now, Some(&hello(1, 2))));
    assert_eq!(world.news(1), ["nobody at 4: closed", "up 2 life 1"]);
    assert!(!world.nodes[&1].peers.contains_key(&NodeId(3)));
}

#[test]
fn who_is_no_node_may_ask_and_is_closed_when_its_answer_is_written() {
    let mut world = World::new(&[1, 2]);
    world.know(1, 2);
    world.news(1);
    let mut asker = world.ask(1, Question::Explain).unwrap();
    assert_eq!(world.news(1), ["asked for Explain"]);
    assert_eq!((asker.heard.len(), &asker.over), (0, &None), "nothing is said to it but the answer");
    let (_, id) = world.asked.pop().unwrap();
    // The answer waits until it is written, however long that is within a handshake's time.
    let text = "x".repeat(ANSWER_LEN);
    world.nodes.get_mut(&1).unwrap().answer(id, &text);
    assert_eq!(world.nodes.get_mut(&1).unwrap().poll_request(), None);
    asker.talk(&mut world);
    assert_eq!((asker.answer().len(), asker.over.as_deref()), (text.len(), Some("closed")));
    world.nodes.get_mut(&1).unwrap().answer(id, "twice");
    world.pass(Duration::from_secs(60));
    assert_eq!((world.news(1), world.news(2)), (vec![], vec!["up 1 life 1".to_owned()]));
}

#[test]
fn a_question_is_answered_over_a_new_start_and_by_who_is_nobody() {
    let mut world = World::new(&[1]);
    let mut asker = world.ask(1, Question::Status).unwrap();
    world.tell(1, |links, now| links.restart(now, None));
    let mut other = world.ask(1, Question::Status).unwrap();
    for asker in [&mut asker, &mut other] {
        world.nodes.get_mut(&1).unwrap().answer(asker.end.1, "{}");
        asker.talk(&mut world);
        assert_eq!((asker.answer().as_str(), asker.over.as_deref()), ("{}", Some("closed")));
    }
}

// S3: who asks takes bounded room and time, and is told why it gets no answer.
#[test]
fn those_who_ask_are_bounded() {
    let mut world = World::new(&[1]);
    let mut askers: Vec<_> = (0..=ASKERS).map(|_| world.ask(1, Question::Status).unwrap()).collect();
    let late = askers.pop().unwrap();
    assert_eq!(late.over.as_deref(), Some("too many ask at once; ask again"));
    let mut long = askers.pop().unwrap();
    world.nodes.get_mut(&1).unwrap().answer(long.end.1, &"x".repeat(ANSWER_LEN + 1));
    long.talk(&mut world);
    assert!(long.over.as_deref().unwrap().contains("1048577 bytes, more than may be sent"));
    // One is answered and takes nothing; the others are never answered.
    world.nodes.get_mut(&1).unwrap().answer(askers[0].end.1, "{}");
    world.pass(HANDSHAKE);
    assert!(world.nodes[&1].connections.is_empty());
    assert_eq!(world.nodes[&1].due(), None);
    // Connections that say nothing at all are bounded as well.
    let links = world.nodes.get_mut(&1).unwrap();
    assert!((0..STRANGERS).all(|_| links.on_accepted(world.now).is_some()));
    assert_eq!(links.on_accepted(world.now), None);
}

#[test]
fn a_node_that_asks_where_it_should_link_is_cut_off() {
    let mut world = World::new(&[1, 2]);
    world.know(1, 2);
    world.news(2);
    world.tell(1, |links, _| links.send(NodeId(2), &Message::Ask(Question::Status)));
    let news = world.news(2);
    assert!(news[0].starts_with("down 1 life 1: it said a question"), "{news:?}");
}
