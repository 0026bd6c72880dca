//! What is known of the kernel's tables, and how they are kept: by change while nobody else touches them, and anew as
//! soon as they are not what they were.

use svcnet_netlink::nft::{Error, Family, Socket};

use crate::apply;
use crate::engine::Engine;
use crate::layout::{map, pods, table};
use crate::model::Direction;

/// Tables with more than this are not compared whole each time that somebody changes any table of the host.
const COMPARED_WHOLE_MAX: usize = 5_000;
/// Larger ones are compared whole every so many looks.
const WHOLE_EVERY: u32 = 60;
/// Rules of a base chain, and of the chain that it leads to.
const fn rules(direction: Direction) -> [usize; 2] {
    match direction {
        Direction::Ingress => [2, 5],
        Direction::Egress => [2, 4],
    }
}

/// What is known of the kernel's tables.
#[derive(Debug)]
pub(crate) struct Tables {
    families: Vec<Family>,
    known: Known,
    /// The generation of nf_tables when they were last right.
    generation: Option<u32>,
    looks: u32,
}

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing: they may be right, from an earlier run.
    Nothing,
    /// They are not right.
    Wrong,
    /// They hold what was told.
    Right,
}

impl Tables {
    pub(crate) fn new(families: &[Family]) -> Self {
        Self {
            families: families.to_vec(),
            known: Known::Nothing,
            generation: None,
            looks: 0,
        }
    }

    pub(crate) fn families(&self) -> &[Family] {
        &self.families
    }

    /// The next time all is made anew.
    pub(crate) fn distrust(&mut self) {
        self.known = Known::Wrong;
    }

    /// Brings the kernel along; how many operations that took.
    pub(crate) fn sync(&mut self, socket: &mut Socket, engine: &mut Engine) -> Result<usize, Error> {
        if self.known == Known::Nothing && apply::holds(socket, &self.families, &engine.entries())? {
            // Nothing that was collected so far is news to the kernel.
            engine.take_plan();
            self.known = Known::Right;
            self.generation = Some(socket.generation()?);
            return Ok(0);
        }
        let plan = if self.known == Known::Right {
            engine.take_plan()
        } else {
            engine.take_all()
        };
        if self.known == Known::Right {
            if plan.is_empty() {
                return Ok(0);
            }
            apply::change(socket, &plan)?;
        } else {
            apply::rebuild(socket, &self.families, &plan)?;
            self.known = Known::Right;
        }
        Ok(plan.ops.len())
    }

    /// Whether the tables are still what they were.
    pub(crate) fn look(&mut self, socket: &mut Socket, engine: &Engine) -> Result<bool, Error> {
        if self.known != Known::Right {
            return Ok(true);
        }
        let generation = socket.generation()?;
        if self.generation == Some(generation) {
            return Ok(true);
        }
        self.looks = self.looks.wrapping_add(1);
        let small = engine.entry_count() <= COMPARED_WHOLE_MAX;
        let right = if small || self.looks.is_multiple_of(WHOLE_EVERY) {
            apply::holds(socket, &self.families, &engine.entries())?
        } else {
            self.stands(socket, engine)?
        };
        if right {
            self.generation = Some(generation);
        } else {
            self.known = Known::Wrong;
        }
        Ok(right)
    }

    /// Whether the chains that packets meet first have their rules: all that a flush leaves nothing of.
    fn stands(&self, socket: &mut Socket, engine: &Engine) -> Result<bool, Error> {
        for family in &self.families {
            for direction in Direction::BOTH {
                let unhooked = usize::from(!engine.is_hooked(*family, direction));
                for (chain, rules) in [map(direction), pods(direction)]
                    .into_iter()
                    .zip(rules(direction))
                    .skip(unhooked)
                {
                    match socket.rules_in(&table(*family), Some(chain)) {
                        Ok(found) if found.len() == rules => {}
                        Ok(_) => return Ok(false),
                        Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => return Ok(false),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(true)
    }
}
