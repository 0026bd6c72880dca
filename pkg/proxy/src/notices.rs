//! What is left aside in Services, said once for each and not at every change of the Service.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::model::FrontendKey;
use crate::scheduler::Scheduler;
use crate::view::Name;

/// What can be told of a Service.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    /// In its fields and annotations.
    pub(crate) complaints: Box<[Box<str>]>,
    /// External addresses outside the ranges.
    pub(crate) refused: Box<[IpAddr]>,
    /// The scheduler that it asks for, and the one that stands in for it.
    pub(crate) stand_in: Option<(Scheduler, Scheduler)>,
}

/// What has been told.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    told: HashMap<Name, Notice>,
    taken: HashMap<Name, Box<[(FrontendKey, Name)]>>,
    default: Option<(Scheduler, Scheduler)>,
}

impl Notices {
    /// Tells what is new of a Service.
    pub(crate) fn service(&mut self, name: &Name, notice: Notice) {
        let before = self.told.remove(name).unwrap_or_default();
        for complaint in notice
            .complaints
            .iter()
            .filter(|c| !before.complaints.contains(c))
        {
            tracing::warn!(object.kind = "Service", object.name = %name, reason = %complaint, "left aside");
        }
        if notice.refused != before.refused {
            tell_refused(name, &notice.refused);
        }
        if let Some((wanted, used)) = notice.stand_in.filter(|_| notice.stand_in != before.stand_in) {
            tracing::warn!(
                object.kind = "Service", object.name = %name, scheduler = %wanted, used = %used,
                "this proxy mode has no such scheduler, its nearest is used"
            );
        }
        if notice != Notice::default() {
            self.told.insert(name.clone(), notice);
        }
    }

    /// Tells which of its frontends other Services have, by the Service's order of them: whose they are is news, and so
    /// is their end.
    pub(crate) fn taken(&mut self, name: &Name, taken: Vec<(FrontendKey, Name)>) {
        let before = self.taken.remove(name).unwrap_or_default();
        let (news, ended) = compare(&before, &taken);
        for (key, owner) in news {
            tracing::warn!(
                object.name = %name, frontend = %key, owner = %owner,
                "another service has this frontend"
            );
        }
        for key in ended {
            tracing::info!(object.name = %name, frontend = %key, "no other service has this frontend any more");
        }
        if !taken.is_empty() {
            self.taken.insert(name.clone(), taken.into());
        }
    }

    /// The Service is gone, and what was told of it with it.
    pub(crate) fn forget(&mut self, name: &Name) {
        self.told.remove(name);
    }

    /// Tells it of the scheduler of all Services that do not name one.
    pub(crate) fn default_scheduler(&mut self, wanted: Scheduler, used: Scheduler) {
        let stand_in = (wanted != used).then_some((wanted, used));
        if stand_in.is_some() && stand_in != self.default {
            tracing::warn!(
                scheduler = %wanted, used = %used,
                "this proxy mode has no such scheduler, its nearest is used (--scheduler)"
            );
        }
        self.default = stand_in;
    }
}

/// Frontends that have another owner than before, and those that none of the others has any more.
fn compare<'a>(
    before: &'a [(FrontendKey, Name)],
    now: &'a [(FrontendKey, Name)],
) -> (Vec<&'a (FrontendKey, Name)>, Vec<&'a FrontendKey>) {
    let news = now.iter().filter(|one| !before.contains(one)).collect();
    let stays = |key: &FrontendKey| now.iter().any(|(is, _)| is == key);
    let ended = before
        .iter()
        .map(|(key, _)| key)
        .filter(|key| !stays(key))
        .collect();
    (news, ended)
}

fn tell_refused(name: &Name, refused: &[IpAddr]) {
    if refused.is_empty() {
        tracing::info!(object.kind = "Service", object.name = %name, "external addresses are accepted now");
        return;
    }
    let addresses: Vec<String> = refused.iter().map(ToString::to_string).collect();
    tracing::warn!(
        object.kind = "Service", object.name = %name, addresses = addresses.join(","),
        "externalIPs outside the accepted ranges are left aside (--external-ip-range)"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn an_owner_is_news_once() {
        let at = |port| FrontendKey::Address {
            ip: "203.0.113.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port,
        };
        let name = |name: &str| Name::from(name);
        let first = [(at(80), name("a")), (at(81), name("a"))];
        let second = [(at(80), name("a")), (at(81), name("b"))];
        let none: (Vec<&(FrontendKey, Name)>, Vec<&FrontendKey>) = (vec![], vec![]);
        assert_eq!(compare(&[], &first).0.len(), 2);
        assert_eq!(compare(&first, &first), none, "said before");
        assert_eq!(
            compare(&first, &second),
            (vec![&second[1]], vec![]),
            "another has it now"
        );
        assert_eq!(
            compare(&second, &[]),
            (vec![], vec![&at(80), &at(81)]),
            "it is over"
        );
    }
}
