use super::*;

fn admitted(scheduler: &mut Scheduler<u32>) -> Vec<u32> {
    let mut names = Vec::new();
    scheduler.admit(|&job| names.push(job));
    names
}

#[test]
fn slots_are_given_in_the_order_of_arrival_and_given_again_when_free() {
    let mut scheduler = Scheduler::new(2);
    for job in 1..=4 {
        scheduler.join(job);
    }
    assert_eq!(admitted(&mut scheduler), [1, 2]);
    assert_eq!(scheduler.waiting(), 2);
    assert_eq!(scheduler.next_to_prefill(), Some(1));
    assert!(admitted(&mut scheduler).is_empty());
    scheduler.free_slot();
    assert_eq!(admitted(&mut scheduler), [3]);
}

#[test]
fn a_long_prompt_takes_turns_with_the_others() {
    let mut scheduler = Scheduler::new(4);
    for job in 1..=3 {
        scheduler.join(job);
    }
    admitted(&mut scheduler);
    let mut order = Vec::new();
    for _ in 0..6 {
        if let Some(job) = scheduler.next_to_prefill() {
            order.push(job);
            scheduler.continue_prefill(job);
        }
    }
    assert_eq!(order, [1, 2, 3, 1, 2, 3]);
    assert_eq!(scheduler.occupied(), 3);
}

#[test]
fn returning_and_new_jobs_get_free_slots_in_turn() {
    let mut scheduler = Scheduler::new(1);
    for job in 1..=2 {
        scheduler.join(job);
    }
    for job in 11..=14 {
        scheduler.rejoin(job);
    }
    assert_eq!(scheduler.waiting(), 6);
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        order.extend(admitted(&mut scheduler));
        scheduler.next_to_prefill();
        scheduler.free_slot();
    }
    assert_eq!(order, [11, 1, 12, 2, 13, 14]);
}

#[test]
fn removed_jobs_free_their_slots_wherever_they_are() {
    let mut scheduler = Scheduler::new(2);
    for job in 1..=4 {
        scheduler.join(job);
    }
    admitted(&mut scheduler);
    assert_eq!(scheduler.remove_if(|job| job % 2 == 0), [4, 2]);
    assert_eq!(admitted(&mut scheduler), [3]);
    assert_eq!(scheduler.occupied(), 2);
}
