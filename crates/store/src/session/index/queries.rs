//! What can be asked without reading a record.

use std::time::Duration;

use super::{Index, MAX_RETIRED_MODELS};
use crate::session::error::SessionError;
use crate::session::identity::ModelVersion;
use crate::session::name::{Owner, SessionKey};
use crate::session::storage::{
    AllowedSessions, ListRequest, PageToken, SessionInfo, SessionPage, SessionStats,
};

impl Index {
    pub(in crate::session) fn info(
        &self,
        key: &SessionKey,
        now_ms: u64,
    ) -> Result<SessionInfo, SessionError> {
        let slot = self.existing(key, now_ms)?;
        Ok(self.info_of(slot, now_ms))
    }

    fn info_of(&self, slot: u32, now_ms: u64) -> SessionInfo {
        let entry = self.entry(slot);
        SessionInfo {
            key: self.key(slot),
            identity: self.identities.get(entry.identity).clone(),
            position: entry.position,
            last_call_position: entry.last_call_position,
            busy: entry
                .holder
                .as_ref()
                .is_some_and(|holder| !holder.is_internal),
            idle: Duration::from_millis(now_ms.saturating_sub(entry.last_used_ms)),
            bytes: entry.bytes.into(),
            created_unix_ms: entry.created_unix_ms,
        }
    }

    pub(in crate::session) fn list(&self, request: &ListRequest, now_ms: u64) -> SessionPage {
        let before = request.after.map_or(u64::MAX, |token| token.0);
        let owner = match &request.owner {
            None => None,
            Some(owner) => match self.owners.find(owner) {
                Some(owner) => Some(owner),
                None => return SessionPage::default(),
            },
        };
        let slots: Box<dyn Iterator<Item = (u64, u32)>> = match owner {
            None => Box::new(
                self.order
                    .range(..before)
                    .rev()
                    .map(|(&m, &slot)| (m, slot)),
            ),
            Some(owner) => {
                let range = self.order_of_owner.range((owner, 0)..(owner, before));
                Box::new(range.rev().map(|(&(_, mark), &slot)| (mark, slot)))
            }
        };
        let mut page = SessionPage {
            total: match owner {
                None => self.sessions(),
                Some(owner) => self.owners.count(owner) - self.pending_of(owner),
            },
            ..SessionPage::default()
        };
        let mut last = None;
        for (mark, slot) in slots {
            if self.is_expired(self.entry(slot), now_ms) {
                // All others were used even longer ago.
                break;
            }
            if page.sessions.len() == request.max_sessions {
                page.next = last.map(PageToken);
                break;
            }
            page.sessions.push(self.info_of(slot, now_ms));
            last = Some(mark);
        }
        page
    }

    pub(in crate::session) fn count_by_model(&self, model: &ModelVersion) -> u64 {
        let identities = self.identities.iter();
        identities
            .filter(|(identity, _)| identity.model == *model)
            .map(|(_, count)| count)
            .sum()
    }

    /// Number of sessions of a model version that belong to other principals
    /// than `owner`. Looks at every session if the version has any.
    fn count_of_others(&self, model: &ModelVersion, owner: &Owner) -> u64 {
        if self.count_by_model(model) == 0 {
            return 0;
        }
        let owner = self.owners.find(owner);
        let others = self.entries.iter().flatten().filter(|entry| {
            Some(entry.owner) != owner && self.identities.get(entry.identity).model == *model
        });
        others.count() as u64
    }

    pub(in crate::session) fn retire_model(
        &mut self,
        model: &ModelVersion,
        allowed: &AllowedSessions,
    ) -> Result<(), SessionError> {
        self.check_open()?;
        let sessions = match allowed {
            AllowedSessions::None => self.count_by_model(model),
            AllowedSessions::OfOwner(owner) => self.count_of_others(model, owner),
            AllowedSessions::All => 0,
        };
        if sessions > 0 {
            return Err(SessionError::ModelInUse {
                model: model.clone(),
                sessions,
            });
        }
        if self.retired.len() >= MAX_RETIRED_MODELS {
            self.retired.clear();
        }
        self.retired.insert(model.clone());
        Ok(())
    }

    pub(in crate::session) fn reinstate_model(
        &mut self,
        model: &ModelVersion,
    ) -> Result<(), SessionError> {
        self.check_open()?;
        self.retired.remove(model);
        Ok(())
    }

    pub(in crate::session) fn stats(&self) -> SessionStats {
        SessionStats {
            sessions: self.sessions(),
            pending_creates: self.pending,
            in_use: self.in_use,
            bytes: self.bytes,
            cached_bytes: 0,
            tombstones: self.tombstones.len() as u64,
            evicted: self.evicted.clone(),
            damaged: 0,
            available: true,
        }
    }
}
