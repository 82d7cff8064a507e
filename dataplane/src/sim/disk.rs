//! The simulated disk: files in memory, jobs that take their time, and every failure that a log must live with, from one seed.
//!
//! What is written is not flushed, and what is not flushed is lost in a [crash](SimDisk::crash), or kept in parts: by pages, in any order, torn
//! at words. A flush that fails makes the pages clean and does not write them, as Linux does: the next flush succeeds, and they are gone (P2).
//!
//! Handles are clones: a test keeps one to crash and spoil what the log uses through another.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Choices;
use crate::fabric::Doorbell;
use crate::log::disk::{Batch, Disk, DiskError, DiskTrouble, Done, Job, Piece};

/// What a crash keeps or loses as one.
const PAGE: usize = 512;

/// How often what goes wrong, in percent of the occasions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskFaults {
    /// A flush fails.
    pub flush_fails: u64,
    /// A write is taken and never done; the flush succeeds.
    pub write_lost: u64,
    /// There is room for so many bytes in all files together; 0: as many as wanted.
    pub room: u64,
    /// A job is not over when the disk is polled.
    pub slow: u64,
}

/// How often each fault was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskFaultCounts {
    /// Flushes that failed.
    pub flushes_failed: u64,
    /// Writes that were lost.
    pub writes_lost: u64,
    /// Jobs refused for want of room.
    pub full: u64,
    /// Crashes that kept a part of what was not flushed.
    pub torn: u64,
    /// Bits flipped.
    pub flipped: u64,
}

#[derive(Default)]
struct File {
    /// What a reader sees.
    now: Vec<u8>,
    /// What is there after a crash.
    flushed: Vec<u8>,
    /// Pages that were written since.
    dirty: Vec<usize>,
}

impl File {
    fn flush(&mut self) {
        self.flushed.clone_from(&self.now);
        self.dirty.clear();
    }
}

struct State {
    choices: Choices,
    faults: DiskFaults,
    counts: DiskFaultCounts,
    files: BTreeMap<String, File>,
    jobs: VecDeque<Job>,
    /// Counted up by a crash: what a log of before submits and asks is of no interest any more.
    life: u64,
    bell: Option<Doorbell>,
}

/// See the [module](self).
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    life: u64,
}

impl SimDisk {
    /// An empty directory.
    pub fn new(seed: u64, faults: DiskFaults) -> Self {
        let state = State {
            choices: Choices::new(seed),
            faults,
            counts: DiskFaultCounts::default(),
            files: BTreeMap::new(),
            jobs: VecDeque::new(),
            life: 0,
            bell: None,
        };
        Self { state: Arc::new(Mutex::new(state)), life: 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process is killed, the machine goes on: what was written is there, and not flushed. Returns the directory as it is found
    /// afterwards; handles of before are dead.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut state = self.state();
        state.jobs.clear();
        state.life += 1;
        let life = state.life;
        drop(state);
        Self { state: self.state.clone(), life }
    }

    /// The machine stops: what was not flushed is lost, or kept in parts. Returns the directory as it is found afterwards; handles of
    /// before are dead.
    #[must_use]
    pub fn crash(&self) -> Self {
        let mut state = self.state();
        let State { choices, files, counts, .. } = &mut *state;
        // A part of what was under way may have been done.
        for file in files.values_mut() {
            let mut kept = file.flushed.clone();
            let (all, none) = (choices.chance(20), choices.chance(30));
            for page in std::mem::take(&mut file.dirty) {
                let range = page * PAGE..((page + 1) * PAGE).min(file.now.len()).min(kept.len());
                if range.is_empty() || none || !all && choices.chance(50) {
                    continue;
                }
                counts.torn += 1;
                // Words of a page are whole; the page need not be.
                let upto = if choices.chance(25) {
                    choices.below(range.len() as u64 / 8 + 1) as usize * 8
                } else {
                    range.len()
                };
                let range = range.start..range.start + upto.min(range.len());
                kept[range.clone()].copy_from_slice(&file.now[range]);
            }
            file.now.clone_from(&kept);
            file.flushed = kept;
        }
        drop(state);
        self.kill()
    }

    /// A copy of what is flushed, and of nothing else: what any crash leaves.
    #[must_use]
    pub fn flushed(&self) -> Self {
        let copy = Self::new(0, DiskFaults::default());
        let files = self
            .state()
            .files
            .iter()
            .map(|(name, file)| {
                let (now, flushed) = (file.flushed.clone(), file.flushed.clone());
                (name.clone(), File { now, flushed, dirty: Vec::new() })
            })
            .collect();
        copy.state().files = files;
        copy
    }

    /// How often what went wrong.
    pub fn counts(&self) -> DiskFaultCounts {
        self.state().counts
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.state().faults = faults;
    }

    /// What is in a file.
    pub fn content(&self, name: &str) -> Vec<u8> {
        self.state().files.get(name).map(|file| file.now.clone()).unwrap_or_default()
    }

    /// Puts other bytes there, behind everybody's back.
    pub fn spoil(&self, name: &str, content: &[u8]) {
        let file = File { now: content.to_vec(), flushed: content.to_vec(), dirty: Vec::new() };
        self.state().files.insert(name.to_owned(), file);
    }

    /// Flips one bit somewhere in the first `below` bytes of a file; returns where.
    pub fn flip(&self, name: &str, below: usize) -> Option<usize> {
        let mut state = self.state();
        let (at, bit) = (state.choices.below(below as u64) as usize, state.choices.below(8));
        let file = state.files.get_mut(name)?;
        *file.now.get_mut(at)? ^= 1 << bit;
        *file.flushed.get_mut(at)? ^= 1 << bit;
        state.counts.flipped += 1;
        Some(at)
    }

    fn is_dead(&self, state: &State) -> bool {
        state.life != self.life
    }
}

fn missing(name: &str) -> DiskError {
    DiskError::new(DiskTrouble::Missing, format!("there is no file {name}"))
}

impl State {
    fn room_for(&mut self, bytes: u64) -> Result<(), DiskError> {
        let used: u64 = self.files.values().map(|file| file.now.len() as u64).sum();
        if self.faults.room > 0 && used + bytes > self.faults.room {
            self.counts.full += 1;
            return Err(DiskError::new(DiskTrouble::Full, "no space left on the device"));
        }
        Ok(())
    }

    fn create(&mut self, name: &str, bytes: u64) -> Result<(), DiskError> {
        self.room_for(bytes)?;
        if self.files.contains_key(name) {
            return Err(DiskError::new(DiskTrouble::Failed, format!("there is a file {name} already")));
        }
        let zeros = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.files.insert(name.to_owned(), File { now: zeros.clone(), flushed: zeros, dirty: Vec::new() });
        Ok(())
    }

    fn replace(&mut self, name: &str, content: Vec<u8>) -> Result<(), DiskError> {
        self.room_for(content.len() as u64)?;
        if self.choices.chance(self.faults.flush_fails) {
            self.counts.flushes_failed += 1;
            return Err(DiskError::new(DiskTrouble::Failed, format!("the flush of {name} failed")));
        }
        self.files
            .insert(name.to_owned(), File { now: content.clone(), flushed: content, dirty: Vec::new() });
        Ok(())
    }

    fn write(&mut self, batch: &Batch) -> Result<(), DiskError> {
        let mut all = Vec::with_capacity(batch.len());
        for piece in &batch.pieces {
            match piece {
                Piece::Staged(range) => all.extend_from_slice(&batch.staged[range.clone()]),
                Piece::Lying(memory, range) => {
                    let words = range.start / 8 * 8..range.end.next_multiple_of(8);
                    let mut bytes = Vec::new();
                    memory.append_words(words.clone(), &mut bytes);
                    all.extend_from_slice(&bytes[range.start - words.start..][..range.len()]);
                }
            }
        }
        let State { choices, faults, counts, files, .. } = self;
        let file = files.get_mut(&batch.name).ok_or_else(|| missing(&batch.name))?;
        let at = usize::try_from(batch.at).unwrap_or(usize::MAX);
        let Some(place) = file.now.get_mut(at..at.saturating_add(all.len())) else {
            return Err(DiskError::new(
                DiskTrouble::Failed,
                format!("a write behind the end of {}", batch.name),
            ));
        };
        if choices.chance(faults.write_lost) {
            counts.writes_lost += 1;
            return Ok(());
        }
        place.copy_from_slice(&all);
        let pages = at / PAGE..(at + all.len()).div_ceil(PAGE);
        file.dirty.extend(pages);
        Ok(())
    }

    fn flush(&mut self, name: &str) -> Result<(), DiskError> {
        let State { choices, faults, counts, files, .. } = self;
        let Some(file) = files.get_mut(name) else { return Err(missing(name)) };
        if choices.chance(faults.flush_fails) {
            counts.flushes_failed += 1;
            // Clean, and not written: what a reader sees in memory is not on the device, and no later flush will bring it there.
            file.dirty.clear();
            return Err(DiskError::new(DiskTrouble::Failed, format!("the flush of {name} failed")));
        }
        for page in std::mem::take(&mut file.dirty) {
            let range = page * PAGE..((page + 1) * PAGE).min(file.now.len());
            let end = range.end.min(file.flushed.len());
            if range.start < end {
                file.flushed[range.start..end].copy_from_slice(&file.now[range.start..end]);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, job: &Job) -> Result<(), DiskError> {
        match job {
            Job::Write(batch) => {
                self.write(batch)?;
                self.flush(&batch.name)
            }
            Job::Create(name, bytes) => self.create(name, *bytes),
            Job::Delete(name) => {
                self.files.remove(name);
                Ok(())
            }
            Job::Replace(name, content) => self.replace(name, content.clone()),
            Job::Rename(from, to) => {
                let file = self.files.remove(from).ok_or_else(|| missing(from))?;
                self.files.insert(to.clone(), file);
                Ok(())
            }
        }
    }
}

impl Disk for SimDisk {
    fn list(&mut self) -> Result<Vec<(String, u64)>, DiskError> {
        Ok(self.state().files.iter().map(|(name, file)| (name.clone(), file.now.len() as u64)).collect())
    }

    fn read(&mut self, name: &str, at: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        let state = self.state();
        let file = state.files.get(name).ok_or_else(|| missing(name))?;
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(file.now.len());
        let len = into.len().min(file.now.len() - from);
        into[..len].copy_from_slice(&file.now[from..from + len]);
        Ok(len)
    }

    fn rewrite(&mut self, name: &str, range: Range<u64>) -> Result<(), DiskError> {
        let mut state = self.state();
        let file = state.files.get_mut(name).ok_or_else(|| missing(name))?;
        let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX);
        file.dirty.extend(at(range.start) / PAGE..at(range.end).min(file.now.len()).div_ceil(PAGE));
        state.flush(name)
    }

    fn create(&mut self, name: &str, bytes: u64) -> Result<(), DiskError> {
        self.state().create(name, bytes)
    }

    fn cut(&mut self, name: &str, at: u64, bytes: u64) -> Result<(), DiskError> {
        let mut state = self.state();
        let file = state.files.get_mut(name).ok_or_else(|| missing(name))?;
        file.now.truncate(usize::try_from(at).unwrap_or(usize::MAX));
        file.now.resize(usize::try_from(bytes).unwrap_or(0), 0);
        file.flush();
        Ok(())
    }

    fn replace(&mut self, name: &str, content: &[u8]) -> Result<(), DiskError> {
        self.state().replace(name, content.to_vec())
    }

    fn replace_with(
        &mut self,
        name: &str,
        next: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut content = Vec::new();
        loop {
            let mut part = Vec::new();
            next(&mut part)?;
            if part.is_empty() {
                return self.state().replace(name, content);
            }
            content.append(&mut part);
        }
    }

    fn delete(&mut self, name: &str) -> Result<(), DiskError> {
        self.state().files.remove(name);
        Ok(())
    }

    fn submit(&mut self, job: Job) {
        let mut state = self.state();
        if !self.is_dead(&state) {
            state.jobs.push_back(job);
        }
    }

    fn poll(&mut self) -> Option<Done> {
        let mut state = self.state();
        if self.is_dead(&state) {
            return None;
        }
        let slow = state.faults.slow;
        if state.choices.chance(slow) {
            // Under way: what is written may be there already, and is not flushed.
            if let Some(Job::Write(batch)) = state.jobs.front().cloned() {
                let _ = state.write(&batch); // said when it is over
            }
            return None;
        }
        let job = state.jobs.pop_front()?;
        let result = state.carry_out(&job);
        if let Some(bell) = &state.bell {
            bell.ring();
        }
        Some(Done { job, result })
    }

    fn beside(&self) -> Box<dyn Disk> {
        Box::new(self.clone())
    }

    fn has_news(&self) -> bool {
        let state = self.state();
        !self.is_dead(&state) && !state.jobs.is_empty()
    }

    fn set_bell(&mut self, bell: Doorbell) {
        self.state().bell = Some(bell);
    }
}
