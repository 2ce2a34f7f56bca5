//! The exchange's memory of order entry sessions: who they belong to, and what was answered.
//!
//! A session outlives its connection, so that a client that lost it learns what it missed. All is
//! bounded: [`MAX_SESSIONS`] sessions, of which one that nobody is connected to makes room for a new
//! one, and the last [`MAX_ANSWERS`] answers of each.

use std::collections::VecDeque;

use crate::order_entry::{Login, Refusal, Response, Update};

/// Most sessions that are remembered.
pub const MAX_SESSIONS: usize = 1024;

/// Most answers that are remembered of a session.
pub const MAX_ANSWERS: usize = 4096;

/// Largest session number.
const MAX_NUMBER: u32 = u32::MAX >> 1;

#[derive(Debug)]
struct Session {
    number: u32,
    user: [u8; 10],
    connected: bool,
    last_reference: u32,
    next_sequence: u64,
    /// The last answers; the newest has the number `next_sequence - 1`.
    answers: VecDeque<Response>,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    /// Session `number` is at `number % MAX_SESSIONS`, if it is remembered.
    places: Vec<Option<Session>>,
    last_number: u32,
}

impl Sessions {
    /// Opens a session or goes on with one. What the client is told, and then what it missed, goes
    /// to `emit`. Returns the session's number.
    ///
    /// # Errors
    /// [`Refusal::Full`] or [`Refusal::Session`].
    pub fn log_in(&mut self, login: &Login, mut emit: impl FnMut(Response)) -> Result<u32, Refusal> {
        if login.session == 0 {
            let number = self.open(login.user)?;
            emit(Response::LoggedIn { session: number, next_sequence: 1, last_reference: 0 });
            return Ok(number);
        }
        let session = self
            .get(login.session)
            .filter(|session| session.user == login.user && !session.connected)
            .ok_or(Refusal::Session)?;
        let missed = session.next_sequence.checked_sub(login.next_sequence);
        let missed = missed.map(|missed| missed as usize).filter(|missed| *missed <= session.answers.len());
        let missed = missed.ok_or(Refusal::Session)?;
        session.connected = true;
        emit(Response::LoggedIn {
            session: session.number,
            next_sequence: login.next_sequence,
            last_reference: session.last_reference,
        });
        session.answers.range(session.answers.len() - missed..).for_each(|answer| emit(*answer));
        Ok(session.number)
    }

    /// The connection of a session is gone.
    pub fn disconnect(&mut self, number: u32) {
        if let Some(session) = self.get(number) {
            session.connected = false;
        }
    }

    /// Notes the reference of an order. Returns whether it is higher than all before.
    pub fn take_reference(&mut self, number: u32, reference: u32) -> bool {
        let Some(session) = self.get(number) else {
            return false;
        };
        let is_next = reference > session.last_reference;
        session.last_reference = session.last_reference.max(reference);
        is_next
    }

    /// Numbers and remembers an answer. Returns it, for the client, when one is connected.
    pub fn answer(
        &mut self,
        number: u32,
        timestamp_ns: u64,
        reference: u32,
        update: Update,
    ) -> Option<Response> {
        let session = self.get(number)?;
        let answer = Response::Order { sequence: session.next_sequence, timestamp_ns, reference, update };
        session.next_sequence += 1;
        if session.answers.len() == MAX_ANSWERS {
            session.answers.pop_front();
        }
        session.answers.push_back(answer);
        session.connected.then_some(answer)
    }

    /// Makes a new session, in the first place from the next number on that nobody is connected to.
    fn open(&mut self, user: [u8; 10]) -> Result<u32, Refusal> {
        self.places.resize_with(MAX_SESSIONS, || None);
        for number in (self.last_number + 1..=MAX_NUMBER).take(MAX_SESSIONS) {
            let place = &mut self.places[number as usize % MAX_SESSIONS];
            if place.as_ref().is_some_and(|session| session.connected) {
                continue;
            }
            let answers = VecDeque::new();
            *place =
                Some(Session { number, user, connected: true, last_reference: 0, next_sequence: 1, answers });
            self.last_number = number;
            return Ok(number);
        }
        Err(Refusal::Full)
    }

    fn get(&mut self, number: u32) -> Option<&mut Session> {
        let place = self.places.get_mut(number as usize % MAX_SESSIONS)?;
        place.as_mut().filter(|session| session.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USER: [u8; 10] = *b"someone   ";

    fn log_in(sessions: &mut Sessions, login: Login) -> Result<Vec<Response>, Refusal> {
        let mut out = Vec::new();
        sessions.log_in(&login, |response| out.push(response)).map(|_| out)
    }

    fn sequence(response: &Response) -> u64 {
        match response {
            Response::Order { sequence, .. } => *sequence,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_client_sees_every_answer_once_whenever_its_connection_breaks(
            breaks in prop::collection::vec((0..20u32, 0..20u32), 1..30),
        ) {
            let mut sessions = Sessions::default();
            let mut login = Login::new(USER);
            let (mut seen, mut reference) = (0, 0);
            for (connected, alone) in breaks {
                let answers = log_in(&mut sessions, login).unwrap();
                let Response::LoggedIn { session, next_sequence, last_reference } = answers[0] else {
                    panic!("{answers:?}");
                };
                prop_assert_eq!((next_sequence, last_reference), (seen + 1, reference));
                let mut news = answers[1..].to_vec();
                for _ in 0..connected {
                    reference += 1;
                    prop_assert!(sessions.take_reference(session, reference));
                    news.extend(sessions.answer(session, 0, reference, Update::Accepted));
                }
                for answer in &news {
                    seen += 1;
                    prop_assert_eq!(sequence(answer), seen);
                }
                sessions.disconnect(session);
                for _ in 0..alone {
                    prop_assert_eq!(sessions.answer(session, 0, reference, Update::Accepted), None);
                }
                login = Login { user: USER, session, next_sequence: seen + 1 };
            }
        }
    }

    #[test]
    fn only_the_owner_goes_on_with_a_session_and_only_when_alone() {
        let mut sessions = Sessions::default();
        let number = sessions.log_in(&Login::new(USER), |_| {}).unwrap();
        let again = Login { session: number, ..Login::new(USER) };
        assert_eq!(log_in(&mut sessions, again), Err(Refusal::Session), "it is in use");
        sessions.disconnect(number);
        for wrong in [
            Login { user: *b"else      ", ..again },
            Login { session: number + 1, ..again },
            Login { next_sequence: 2, ..again },
        ] {
            assert_eq!(log_in(&mut sessions, wrong), Err(Refusal::Session), "{wrong:?}");
        }
        for _ in 0..=MAX_ANSWERS {
            sessions.answer(number, 0, 1, Update::Accepted);
        }
        assert_eq!(log_in(&mut sessions, again), Err(Refusal::Session), "the first answer is forgotten");
        let rest = log_in(&mut sessions, Login { next_sequence: 2, ..again }).unwrap();
        assert_eq!(rest.len(), 1 + MAX_ANSWERS);
        assert!(!sessions.take_reference(number, 0), "0 is no reference");
    }

    #[test]
    fn a_session_without_a_connection_makes_room() {
        let mut sessions = Sessions::default();
        let numbers: Vec<_> =
            (0..MAX_SESSIONS).map(|_| sessions.log_in(&Login::new(USER), |_| {}).unwrap()).collect();
        assert_eq!(log_in(&mut sessions, Login::new(USER)), Err(Refusal::Full));
        sessions.disconnect(numbers[7]);
        let new = sessions.log_in(&Login::new(USER), |_| {}).unwrap();
        assert_eq!(new as usize % MAX_SESSIONS, numbers[7] as usize % MAX_SESSIONS);
        let old = Login { session: numbers[7], ..Login::new(USER) };
        assert_eq!(log_in(&mut sessions, old), Err(Refusal::Session));
    }
}
