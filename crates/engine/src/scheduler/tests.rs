use super::*;

/// A job of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TestJob {
    caller: CallerId,
    number: u32,
    /// The step since which it has its slot.
    since: u64,
}

impl Schedulable for TestJob {
    fn caller(&self) -> &CallerId {
        &self.caller
    }

    fn slot_since(&self) -> u64 {
        self.since
    }

    fn set_slot_since(&mut self, step: u64) {
        self.since = step;
    }
}

fn job_of(caller: &str, number: u32) -> TestJob {
    TestJob {
        caller: caller.into(),
        number,
        since: 0,
    }
}

fn job(number: u32) -> TestJob {
    job_of("one", number)
}

fn admitted(scheduler: &mut Scheduler<TestJob>) -> Vec<u32> {
    let mut numbers = Vec::new();
    scheduler.admit(false, |job| numbers.push(job.number));
    numbers
}

fn free(scheduler: &mut Scheduler<TestJob>) {
    scheduler.free_slot(&"one".into());
}

#[test]
fn slots_are_given_in_the_order_of_arrival_and_given_again_when_free() {
    let mut scheduler = Scheduler::new(2);
    for number in 1..=4 {
        scheduler.join(job(number));
    }
    assert_eq!(admitted(&mut scheduler), [1, 2]);
    assert_eq!(scheduler.waiting(), 2);
    assert_eq!(scheduler.next_to_prefill(), Some(job(1)));
    assert!(admitted(&mut scheduler).is_empty());
    free(&mut scheduler);
    assert_eq!(admitted(&mut scheduler), [3]);
}

#[test]
fn a_long_prompt_takes_turns_with_the_others() {
    let mut scheduler = Scheduler::new(4);
    for number in 1..=3 {
        scheduler.join(job(number));
    }
    admitted(&mut scheduler);
    let mut order = Vec::new();
    for _ in 0..6 {
        if let Some(job) = scheduler.next_to_prefill() {
            order.push(job.number);
            scheduler.continue_prefill(job);
        }
    }
    assert_eq!(order, [1, 2, 3, 1, 2, 3]);
    assert_eq!(scheduler.occupied(), 3);
}

#[test]
fn the_callers_take_turns_in_prefill() {
    let mut scheduler = Scheduler::new(8);
    for number in 1..=4 {
        scheduler.join(job(number));
    }
    scheduler.join(job_of("other", 11));
    admitted(&mut scheduler);
    let mut order = Vec::new();
    for _ in 0..6 {
        if let Some(job) = scheduler.next_to_prefill() {
            order.push(job.number);
            scheduler.continue_prefill(job);
        }
    }
    let others = order.iter().filter(|number| **number == 11).count();
    assert_eq!(others, 3, "{order:?}");
}

#[test]
fn returning_and_new_jobs_get_free_slots_in_turn() {
    let mut scheduler = Scheduler::new(1);
    for number in 1..=2 {
        scheduler.join(job(number));
    }
    for number in 11..=14 {
        scheduler.rejoin(job(number));
    }
    assert_eq!(scheduler.waiting(), 6);
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        order.extend(admitted(&mut scheduler));
        scheduler.next_to_prefill();
        free(&mut scheduler);
    }
    assert_eq!(order, [11, 1, 12, 2, 13, 14]);
}

#[test]
fn removed_jobs_free_their_slots_wherever_they_are() {
    let mut scheduler = Scheduler::new(2);
    for number in 1..=4 {
        scheduler.join(job(number));
    }
    admitted(&mut scheduler);
    let removed = scheduler.remove_if(|job| job.number % 2 == 0);
    assert_eq!(removed, [job(4), job(2)]);
    assert_eq!(admitted(&mut scheduler), [3]);
    assert_eq!(scheduler.occupied(), 2);
}

/// What a worker does with a scheduler: jobs without prompts that never end.
struct Simulation {
    scheduler: Scheduler<TestJob>,
    batch: Vec<TestJob>,
}

impl Simulation {
    fn new(slots: usize) -> Self {
        Self {
            scheduler: Scheduler::new(slots),
            batch: Vec::new(),
        }
    }

    fn join(&mut self, caller: &str, jobs: u32) {
        for number in 0..jobs {
            self.scheduler.join(job_of(caller, number));
        }
    }

    /// Takes a step, and returns the number of rows of each caller.
    fn step(&mut self, is_surplus: bool) -> HashMap<CallerId, usize> {
        self.scheduler.admit(is_surplus, |_| {});
        while !is_surplus && let Some(preemption) = self.scheduler.preempt() {
            let Some(job) = self.take(&preemption) else {
                break;
            };
            self.scheduler.preempted(job);
            self.scheduler.admit(false, |_| {});
        }
        while let Some(job) = self.scheduler.next_to_prefill() {
            self.batch.push(job);
        }
        self.scheduler.stepped();
        assert!(self.batch.len() <= self.scheduler.slots);
        assert_eq!(self.scheduler.running(), self.batch.len());
        let mut rows = HashMap::new();
        for job in &self.batch {
            *rows.entry(job.caller.clone()).or_default() += 1;
        }
        rows
    }

    fn take(&mut self, preemption: &Preemption) -> Option<TestJob> {
        if let Some(job) = self.scheduler.take_prefilling(preemption) {
            return Some(job);
        }
        let row = self
            .batch
            .iter()
            .position(|job| job.caller == preemption.caller && job.since <= preemption.since)?;
        Some(self.batch.swap_remove(row))
    }

    fn leave(&mut self, caller: &str) {
        let caller = CallerId::from(caller);
        let is_own = |job: &TestJob| job.caller == caller;
        let rows = self.batch.extract_if(.., |job| is_own(job)).count();
        for _ in 0..rows {
            self.scheduler.free_slot(&caller);
        }
        self.scheduler.remove_if(is_own);
    }
}

#[test]
fn while_one_caller_runs_200_streams_every_other_one_is_in_every_step_from_its_first_on() {
    let mut simulation = Simulation::new(64);
    simulation.join("greedy", 200);
    for _ in 0..50 {
        let rows = simulation.step(false);
        assert_eq!(rows[&"greedy".into()], 64, "alone it has everything");
    }
    for other in 0..9 {
        let name = format!("other {other}");
        simulation.join(&name, 1);
        for _ in 0..20 {
            let rows = simulation.step(false);
            assert_eq!(rows[&name.as_str().into()], 1);
            assert_eq!(rows[&"greedy".into()], MIN_SLOTS);
        }
    }
    let rows = simulation.step(true);
    assert_eq!(rows[&"greedy".into()], 55, "a step with all that fits");
    let rows = simulation.step(false);
    assert_eq!(rows[&"greedy".into()], MIN_SLOTS);
    for other in 0..9 {
        simulation.leave(&format!("other {other}"));
    }
    let rows = simulation.step(false);
    assert_eq!(rows[&"greedy".into()], 64, "alone again");
}

#[test]
fn a_caller_has_as_many_rows_as_the_other_one_with_the_most_jobs_or_an_eighth_of_all_others() {
    let mut simulation = Simulation::new(64);
    simulation.join("greedy", 200);
    simulation.join("a", 7);
    simulation.join("b", 3);
    let rows = simulation.step(false);
    let rows_of = |caller: &str| rows[&caller.into()];
    assert_eq!([rows_of("greedy"), rows_of("a"), rows_of("b")], [7, 7, 3]);

    let mut simulation = Simulation::new(64);
    simulation.join("greedy", 200);
    for other in 0..40 {
        simulation.join(&format!("other {other}"), 1);
    }
    let rows = simulation.step(false);
    assert_eq!(rows[&"greedy".into()], 5);
}

#[test]
fn callers_with_many_jobs_have_equally_many_rows() {
    let mut simulation = Simulation::new(30);
    simulation.join("a", 200);
    simulation.step(false);
    simulation.join("b", 200);
    simulation.join("c", 100);
    let rows = simulation.step(false);
    for caller in ["a", "b", "c"] {
        assert_eq!(rows[&caller.into()], 10, "{caller}");
    }
}

#[test]
fn if_there_are_more_callers_than_slots_they_take_turns() {
    let mut simulation = Simulation::new(4);
    let callers: Vec<String> = (0..10).map(|n| format!("caller {n}")).collect();
    for caller in &callers {
        simulation.join(caller, 1);
    }
    let mut chars: HashMap<CallerId, usize> = HashMap::new();
    for _ in 0..1000 {
        for (caller, rows) in simulation.step(false) {
            *chars.entry(caller).or_default() += rows;
        }
    }
    for caller in &callers {
        let chars = chars[&caller.as_str().into()];
        assert!((360..=440).contains(&chars), "{caller}: {chars}");
    }
}

#[test]
fn callers_that_have_left_are_forgotten() {
    let mut simulation = Simulation::new(2);
    for caller in 0..10_000 {
        let name = format!("caller {caller}");
        simulation.join(&name, 1);
        simulation.step(false);
        simulation.leave(&name);
    }
    assert!(simulation.scheduler.served.len() < 100);
}
