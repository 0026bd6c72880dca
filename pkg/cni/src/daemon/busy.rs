//! One call at a time for each container.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

/// The containers that a call is being served for: the next call for the same one waits its turn.
#[derive(Default)]
pub(super) struct Busy {
    containers: Mutex<HashSet<String>>,
    left: Condvar,
}

/// Held while a container is worked on.
pub(super) struct Turn<'a> {
    busy: &'a Busy,
    container: String,
}

impl Busy {
    /// Waits until nobody works on the container.
    pub(super) fn enter(&self, container: &str) -> Turn<'_> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.left.wait_while(containers, |c| c.contains(container));
        free.unwrap_or_else(PoisonError::into_inner)
            .insert(container.to_string());
        self.turn(container)
    }

    /// The same without waiting: nothing when somebody works on the container.
    pub(super) fn try_enter(&self, container: &str) -> Option<Turn<'_>> {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers
            .insert(container.to_string())
            .then(|| self.turn(container))
    }

    fn turn(&self, container: &str) -> Turn<'_> {
        Turn {
            busy: self,
            container: container.to_string(),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.busy
            .containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.container);
        self.busy.left.notify_all();
    }
}
