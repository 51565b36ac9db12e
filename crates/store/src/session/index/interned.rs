//! Values that many sessions share.

use std::collections::HashMap;
use std::hash::Hash;

/// Values that many sessions share, each stored once and counted.
#[derive(Debug)]
pub(super) struct Interned<T> {
    numbers: HashMap<T, u32>,
    values: Vec<Option<(T, u64)>>,
    free: Vec<u32>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            values: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Interned<T> {
    pub(super) fn add(&mut self, value: &T) -> u32 {
        if let Some(&number) = self.numbers.get(value) {
            if let Some((_, count)) = &mut self.values[number as usize] {
                *count += 1;
            }
            return number;
        }
        let shared = Some((value.clone(), 1));
        let number = match self.free.pop() {
            Some(number) => {
                self.values[number as usize] = shared;
                number
            }
            None => {
                self.values.push(shared);
                u32::try_from(self.values.len() - 1).expect("fewer than 2^32 sessions")
            }
        };
        self.numbers.insert(value.clone(), number);
        number
    }

    pub(super) fn release(&mut self, number: u32) {
        let Some((value, count)) = &mut self.values[number as usize] else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.numbers.remove(value);
            self.values[number as usize] = None;
            self.free.push(number);
        }
    }

    pub(super) fn find(&self, value: &T) -> Option<u32> {
        self.numbers.get(value).copied()
    }

    pub(super) fn get(&self, number: u32) -> &T {
        let (value, _) = self.values[number as usize]
            .as_ref()
            .expect("numbers in use have a value");
        value
    }

    pub(super) fn count(&self, number: u32) -> u64 {
        self.values[number as usize]
            .as_ref()
            .map_or(0, |(_, count)| *count)
    }

    pub(super) fn count_of(&self, value: &T) -> u64 {
        self.find(value).map_or(0, |number| self.count(number))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&T, u64)> {
        let values = self.values.iter().flatten();
        values.map(|(value, count)| (value, *count))
    }
}
