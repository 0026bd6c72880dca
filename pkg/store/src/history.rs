//! The last changes of a collection, for watchers and for lists at an older revision.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::key;
use crate::state::Entry;

/// How many changes of a collection are remembered.
const EVENTS_MAX: usize = 8192;
/// How many bytes of former values are remembered in a collection.
const BYTES_MAX: usize = 8 << 20;

/// One change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The change's revision.
    pub revision: u64,
    /// `NAMESPACE/NAME`.
    pub path: Arc<str>,
    /// The object, or its last state when it was deleted; carries the revision either way.
    pub value: Bytes,
    /// Whether it was deleted.
    pub deleted: bool,
    /// What was there before; nothing when it was created.
    pub previous: Option<Entry>,
}

impl Event {
    /// The object's namespace; empty for kinds without.
    pub fn namespace(&self) -> &str {
        key::split(&self.path).0
    }

    /// The object's name.
    pub fn name(&self) -> &str {
        key::split(&self.path).1
    }

    fn cost(&self) -> usize {
        self.value.len() + self.path.len() + 128
    }
}

/// The asked-for revision is older than what is remembered: list anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Compacted {
    /// What was asked for.
    pub asked: u64,
    /// The oldest revision from which everything is remembered.
    pub oldest: u64,
}

#[derive(Debug)]
pub(crate) struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Every change after this revision is in `events`.
    floor: u64,
}

impl History {
    pub(crate) fn new(floor: u64) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            floor,
        }
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.cost();
        self.events.push_back(event);
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(old) = self.events.pop_front() else { break };
            self.bytes -= old.cost();
            self.floor = old.revision;
        }
    }

    /// Forgets everything that is not newer than `floor`.
    pub(crate) fn compact(&mut self, floor: u64) {
        while self.events.front().is_some_and(|e| e.revision <= floor) {
            let Some(old) = self.events.pop_front() else { break };
            self.bytes -= old.cost();
        }
        self.floor = self.floor.max(floor);
    }

    /// Whether every change after a revision is still here.
    pub(crate) fn remembers(&self, revision: u64) -> Result<(), Compacted> {
        if revision < self.floor {
            return Err(Compacted {
                asked: revision,
                oldest: self.floor,
            });
        }
        Ok(())
    }

    /// The changes after a revision, oldest first.
    pub(crate) fn after(
        &self,
        revision: u64,
    ) -> Result<impl DoubleEndedIterator<Item = &Arc<Event>>, Compacted> {
        self.remembers(revision)?;
        let first = self.events.partition_point(|e| e.revision <= revision);
        Ok(self.events.range(first..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64, size: usize) -> Arc<Event> {
        Arc::new(Event {
            revision,
            path: "a/b".into(),
            value: Bytes::from(vec![0; size]),
            deleted: false,
            previous: None,
        })
    }

    #[test]
    fn what_falls_off_is_reported_as_compacted() {
        let mut history = History::new(5);
        assert!(history.after(4).is_err());
        assert_eq!(history.after(5).unwrap().count(), 0);
        for revision in 6..6 + 2 * EVENTS_MAX as u64 {
            history.push(event(revision, 1));
        }
        let floor = 5 + EVENTS_MAX as u64;
        assert!(history.after(floor - 1).is_err());
        assert_eq!(history.after(floor).unwrap().count(), EVENTS_MAX);
        assert_eq!(
            history.after(floor + 3).unwrap().next().unwrap().revision,
            floor + 4
        );
    }

    #[test]
    fn big_values_make_the_history_shorter() {
        let mut history = History::new(0);
        for revision in 1..=20 {
            history.push(event(revision, 1 << 20));
        }
        assert!(history.events.len() < 9);
        assert!(history.after(1).is_err());
    }
}
