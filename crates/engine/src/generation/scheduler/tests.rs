use super::*;

fn admitted(scheduler: &mut Scheduler<u32>) -> Vec<u32> {
    let mut names = Vec::new();
    scheduler.admit(|&job| names.push(job));
    names
}

#[test]
fn places_go_to_the_first_come_and_are_given_again_when_free() {
    let mut scheduler = Scheduler::new(2);
    for job in 1..=4 {
        scheduler.join(job);
    }
    assert_eq!(admitted(&mut scheduler), [1, 2]);
    assert_eq!(scheduler.waiting(), 2);
    assert_eq!(scheduler.next_to_prime(), Some(1));
    assert!(admitted(&mut scheduler).is_empty());
    scheduler.dismiss();
    assert_eq!(admitted(&mut scheduler), [3]);
}

#[test]
fn a_long_prime_takes_turns_with_the_others() {
    let mut scheduler = Scheduler::new(4);
    for job in 1..=3 {
        scheduler.join(job);
    }
    admitted(&mut scheduler);
    let mut order = Vec::new();
    for _ in 0..6 {
        if let Some(job) = scheduler.next_to_prime() {
            order.push(job);
            scheduler.prime_again(job);
        }
    }
    assert_eq!(order, [1, 2, 3, 1, 2, 3]);
    assert_eq!(scheduler.occupied(), 3);
}

#[test]
fn one_who_comes_back_goes_before_those_who_wait() {
    let mut scheduler = Scheduler::new(1);
    scheduler.join(1);
    admitted(&mut scheduler);
    scheduler.join(2);
    scheduler.next_to_prime();
    scheduler.dismiss();
    scheduler.rejoin(1);
    assert_eq!(admitted(&mut scheduler), [1]);
}

#[test]
fn those_who_leave_free_their_places_wherever_they_are() {
    let mut scheduler = Scheduler::new(2);
    for job in 1..=4 {
        scheduler.join(job);
    }
    admitted(&mut scheduler);
    assert_eq!(scheduler.take_out(|job| job % 2 == 0), [4, 2]);
    assert_eq!(admitted(&mut scheduler), [3]);
    assert_eq!(scheduler.occupied(), 2);
}

#[test]
fn a_chunk_of_priming_takes_about_as_long_as_a_step() {
    let mut pace = PrefillBudget::new();
    assert_eq!(pace.chunk(0), LONE_CHUNK_CHARS);
    assert_eq!(pace.chunk(3), 4);
    pace.stepped(Duration::from_millis(2));
    pace.primed(10, Duration::from_millis(1));
    assert_eq!(pace.chunk(3), 30);
    pace.primed(1, Duration::from_millis(100));
    assert_eq!(pace.chunk(3), 4);
}
