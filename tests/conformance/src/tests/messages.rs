//! Messages through the message area, deadlines of calls, and help for busy handlers.

use super::{Group, Needs, group};
use crate::call::{Answer, syscall};
use crate::layout::{PD, RUNNER_EC};
use crate::prelude::*;
use crate::threads::{HIGH, LOW, Pending};
use crate::world::board;
use core::sync::atomic::Ordering;
use hypercall_abi::Hypercall::{CallMessage, ReplyMessage};
use hypercall_abi::cap::BindRole;
use hypercall_abi::regs::Head;
use hypercall_abi::utcb::{Utcb, UtcbItem};
use hypercall_abi::{Hypercall, Selector};

pub(super) const GROUP: Group = group!(
    "messages",
    Needs::Nothing => [
        words_of_the_area_travel_both_ways,
        a_plain_call_leaves_the_areas_alone,
        counts_out_of_range_and_missing_areas_are_refused,
        capabilities_arrive_in_the_window_with_fewer_rights,
        the_first_item_that_fails_ends_the_transfer,
        a_reply_carries_a_capability,
        a_reply_to_a_caller_without_an_area_drops_the_rest,
        a_call_gives_up_at_its_deadline,
        an_urgent_caller_helps_a_busy_handler_past_others,
        a_helper_helps_through_a_chain_of_calls,
        a_helper_waits_while_the_handler_waits,
        the_most_urgent_caller_is_served_next,
        a_helper_that_ends_leaves_the_handler_running,
        a_handler_that_ends_while_it_is_helped_aborts_both,
    ],
);

/// The message area of a context, as this task sees it.
#[derive(Clone, Copy)]
struct Area(*mut Utcb);

impl Area {
    /// Binds a fresh page.
    fn bind(w: &mut World, ec: Sel) -> Seen<Area> {
        let memory = w.ram(1)?;
        call(Bind, ec, [memory, BindRole::Utcb as u64, 0]).done()?;
        let area = Area(w.view(memory, 1)? as *mut Utcb);
        // SAFETY: the page is mapped here, readable and writable, and all its values are valid.
        unsafe { area.0.cast::<u8>().write_bytes(0, PAGE as usize) };
        area.change(|utcb| utcb.deadline = FOREVER);
        Ok(area)
    }

    fn get(self) -> Utcb {
        // SAFETY: as in `bind`; nobody else writes now.
        unsafe { self.0.read_volatile() }
    }

    fn change(self, change: impl FnOnce(&mut Utcb)) {
        let mut utcb = self.get();
        change(&mut utcb);
        // SAFETY: as in `get`.
        unsafe { self.0.write_volatile(utcb) };
    }

    fn send(self, selectors: &[Sel], rights: Rights) {
        self.change(|utcb| {
            utcb.item_count = selectors.len() as u32;
            for (item, &selector) in utcb.items.iter_mut().zip(selectors) {
                *item = UtcbItem { selector: selector as u32, rights: rights.bits(), reserved: 0 };
            }
        });
    }
}

fn call_message(portal: Sel, words: [u64; 8]) -> (Answer, [u64; 8]) {
    let head = Head::new(CallMessage, Selector(portal as u32)).0;
    let (status, reply) = syscall(head, words);
    let before = [words[0], words[1], words[2]];
    (Answer::of(head, before, status, [reply[0], reply[1], reply[2]]), reply)
}

/// Adds 1 to each word of the area at word 0, and replies with the area.
extern "C" fn increment(words: &mut [u64; 8]) {
    Area(words[0] as *mut Utcb).change(|utcb| {
        let count = utcb.word_count as usize;
        utcb.words[..count].iter_mut().for_each(|word| *word += 1);
        board(0).store(utcb.item_count.into(), Ordering::Relaxed);
    });
    reply_message(words);
}

/// Replies with what the area at word 0 holds.
extern "C" fn reply_message(words: &mut [u64; 8]) {
    let (status, _) = syscall(Head::new(ReplyMessage, Selector(0)).0, *words);
    words[7] = status;
}

extern "C" fn plain(words: &mut [u64; 8]) {
    words[1] = Area(words[0] as *mut Utcb).get().item_count.into();
}

/// A portal, its handler, the handler's area and ours.
fn pair(w: &mut World, body: usys::portal::Body) -> Seen<(Sel, Sel, Area, Area)> {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, body)?;
    let theirs = Area::bind(w, handler)?;
    let ours = Area::bind(w, RUNNER_EC)?;
    Ok((portal, handler, theirs, ours))
}

fn words_of_the_area_travel_both_ways(w: &mut World) -> Check {
    let (portal, _, theirs, ours) = pair(w, increment)?;
    for count in [0, 1, 7, 480] {
        ours.change(|utcb| {
            utcb.word_count = count;
            utcb.words = core::array::from_fn(|index| 1000 + index as u64);
        });
        let (answer, reply) = call_message(portal, [theirs.0 as u64, 2, 3, 4, 5, 6, 7, 8]);
        answer.ok()?;
        equal("words in registers", &reply[1..], &[2, 3, 4, 5, 6, 7, 8][..])?;
        let utcb = ours.get();
        equal("words", utcb.word_count, count)?;
        for (index, &word) in utcb.words.iter().enumerate() {
            let added = u64::from(index < count as usize);
            equal("word", word, 1000 + index as u64 + added)?;
        }
    }
    Ok(())
}

fn a_plain_call_leaves_the_areas_alone(w: &mut World) -> Check {
    let (portal, _, theirs, ours) = pair(w, plain)?;
    ours.change(|utcb| (utcb.word_count, utcb.item_count) = (481, 9));
    let (status, _) = syscall(Head::new(Hypercall::Call, Selector(portal as u32)).0, [theirs.0 as u64; 8]);
    equal("status", status, Success as u64)?;
    let utcb = ours.get();
    equal("counts", (utcb.word_count, utcb.item_count), (481, 9))
}

fn counts_out_of_range_and_missing_areas_are_refused(w: &mut World) -> Check {
    call(ReplyMessage, 0, []).fails(BadType)?;
    let bare = w.handler(0)?;
    let silent = w.portal(bare, plain)?;
    call_message(silent, [0; 8]).0.fails(Unbound)?;
    let (portal, handler, theirs, ours) = pair(w, increment)?;
    let words = [theirs.0 as u64; 8];
    let weak = w.without(portal, Rights::PT_CALL)?;
    call_message(weak, words).0.fails(BadRights)?;
    call_message(handler, words).0.fails(BadType)?;
    ours.change(|utcb| utcb.word_count = 1);
    call_message(silent, words).0.fails(Unbound)?;
    for (word_count, item_count) in [(481, 0), (u32::MAX, 0), (0, 9), (0, u32::MAX)] {
        ours.change(|utcb| (utcb.word_count, utcb.item_count) = (word_count, item_count));
        call_message(portal, words).0.fails(BadArgument)?;
    }
    ours.send(&[portal], Rights::ALL);
    ours.change(|utcb| utcb.items[0].reserved = 1);
    call_message(portal, words).0.fails(BadArgument)
}

fn capabilities_arrive_in_the_window_with_fewer_rights(w: &mut World) -> Check {
    let (portal, _, theirs, ours) = pair(w, increment)?;
    let window = w.sels(3);
    theirs.change(|utcb| (utcb.window_base, utcb.window_count) = (window as u32, 3));
    let (sm, memory) = (w.sm(0)?, w.ram(4)?);
    ours.send(&[sm, memory], Rights::SIGNAL);
    call_message(portal, [theirs.0 as u64; 8]).0.ok()?;
    equal("items that the handler saw", board(0).load(Ordering::Relaxed), 2)?;
    let utcb = ours.get();
    equal("items sent", (utcb.items_sent, utcb.item_status), (2, 0))?;
    let [head, _, _] = call(CapInfo, window, []).ok()?;
    equal("semaphore", head, ObjectType::Sm as u64 | u64::from(Rights::SIGNAL.bits()) << 16)?;
    let [head, _, pages] = call(CapInfo, window + 1, []).ok()?;
    equal("memory", (head as u8, pages), (ObjectType::Memory as u8, 4))?;
    call(Signal, window, []).done()?;
    call(Wait, window, [NOW]).fails(BadRights)?;
    // What was sent is derived: it goes with its source.
    call(Revoke, sm, [0]).done()?;
    call(CapInfo, window, []).fails(BadSelector)
}

fn the_first_item_that_fails_ends_the_transfer(w: &mut World) -> Check {
    let (portal, _, theirs, ours) = pair(w, increment)?;
    let window = w.sels(2);
    let sm = w.sm(0)?;
    let (fixed, empty) = (w.without(sm, Rights::DERIVE)?, w.sel());
    for (items, base, count, sent, status) in [
        (&[sm, empty, sm][..], window, 2, 1, BadSelector),
        (&[fixed], window, 2, 0, BadRights),
        (&[sm], window, 0, 0, BadArgument),
        (&[sm, sm, sm], window, 2, 2, BadArgument),
        (&[sm], portal, 1, 0, Occupied),
        (&[sm], 0, 1, 0, BadArgument),
        (&[sm], u64::from(Selector::END), 1, 0, BadArgument),
    ] {
        theirs.change(|utcb| (utcb.window_base, utcb.window_count) = (base as u32, count));
        ours.send(items, Rights::ALL);
        call_message(portal, [theirs.0 as u64; 8]).0.ok()?;
        let utcb = ours.get();
        equal("items sent", (utcb.items_sent, utcb.item_status), (sent, status as u32))?;
        equal("items that arrived", board(0).load(Ordering::Relaxed), sent.into())?;
        call(Revoke, sm, [0]).done()?;
        if status == BadSelector {
            call(Derive, sm, [0, fixed, Rights::SIGNAL.bits().into()]).done()?;
        }
    }
    Ok(())
}

extern "C" fn grant(words: &mut [u64; 8]) {
    Area(words[0] as *mut Utcb).send(&[words[1]], Rights::WAIT);
    reply_message(words);
}

fn a_reply_carries_a_capability(w: &mut World) -> Check {
    let (portal, _, theirs, ours) = pair(w, grant)?;
    let (sm, at) = (w.sm(3)?, w.sel());
    ours.change(|utcb| (utcb.window_base, utcb.window_count) = (at as u32, 1));
    call_message(portal, [theirs.0 as u64, sm, 0, 0, 0, 0, 0, 0]).0.ok()?;
    let utcb = ours.get();
    let arrived = UtcbItem { selector: at as u32, rights: Rights::WAIT.bits(), reserved: 0 };
    equal("items", (utcb.item_count, utcb.items[0]), (1, arrived))?;
    equal("items sent", theirs.get().items_sent, 1)?;
    call(Wait, at, [NOW]).gives([1, 0, 0])
}

fn a_reply_to_a_caller_without_an_area_drops_the_rest(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, grant)?;
    let theirs = Area::bind(w, handler)?;
    let head = Head::new(Hypercall::Call, Selector(portal as u32)).0;
    let (status, reply) = syscall(head, [theirs.0 as u64, portal, 9, 0, 0, 0, 0, 0]);
    equal("status and word", (status, reply[2]), (Success as u64, 9))?;
    let utcb = theirs.get();
    equal("items sent", (utcb.items_sent, utcb.item_status), (0, Unbound as u32))
}

/// Counts its call, then waits on the semaphore in word 0.
extern "C" fn wait_for(words: &mut [u64; 8]) {
    board(0).fetch_add(1, Ordering::Relaxed);
    call(Wait, words[0], [FOREVER]);
    words[1] = board(1).fetch_add(1, Ordering::Relaxed);
}

fn a_call_gives_up_at_its_deadline(w: &mut World) -> Check {
    let (portal, _, _, ours) = pair(w, wait_for)?;
    let sm = w.sm(0)?;
    let first = w.begin((0, HIGH), Hypercall::Call, portal, [sm])?;
    for wait in [0, 3000] {
        let deadline = if wait == 0 { NOW } else { w.deadline(wait) };
        ours.change(|utcb| utcb.deadline = deadline);
        call_message(portal, [sm; 8]).0.fails(Timeout)?;
        holds("not before it", usys::cpu::now() >= deadline)?;
    }
    equal("calls begun", board(0).load(Ordering::Relaxed), 1)?;
    call(Signal, sm, []).done()?;
    w.answer(&first)?.ok()?;
    call(Signal, sm, []).done()?;
    // A deadline that is over does not matter to an idle handler.
    call_message(portal, [sm; 8]).0.ok().map(drop)
}

extern "C" fn count_for_ever(index: u64) -> ! {
    loop {
        board(index as usize).fetch_add(1, Ordering::Relaxed);
    }
}

/// Says that it runs, and works for as many ticks as word 0 says.
extern "C" fn work(words: &mut [u64; 8]) {
    board(0).fetch_add(1, Ordering::Relaxed);
    let mut left = words[0];
    let mut last = usys::cpu::now();
    while left > 0 {
        let now = usys::cpu::now();
        // Time in which others ran does not count.
        left = left.saturating_sub((now - last).min(1000));
        last = now;
    }
}

extern "C" fn forward(words: &mut [u64; 8]) {
    let [next, w1, ..] = *words;
    let head = Head::new(Hypercall::Call, Selector(next as u32)).0;
    words[7] = syscall(head, [w1, 0, 0, 0, 0, 0, 0, 0]).0;
}

const MIDDLE: u64 = 15;

fn an_urgent_caller_helps_a_busy_handler_past_others(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, work)?;
    let ticks = w.info.tsc_hz / 50;
    let low = w.begin((0, LOW), Hypercall::Call, portal, [ticks])?;
    w.until("the handler runs", || board(0).load(Ordering::Relaxed) == 1)?;
    w.thread(0, MIDDLE, count_for_ever, 8)?;
    w.sleep(2000);
    equal("the one in the middle keeps the low one out", low.is_done(), false)?;
    let before = call(ScInfo, low.sc, []).value()?;
    let high = w.begin((0, HIGH), Hypercall::Call, portal, [0])?;
    w.answer(&high)?.ok()?;
    equal("calls", board(0).load(Ordering::Relaxed), 2)?;
    equal("the low one paid nothing more", call(ScInfo, low.sc, []).value()?, before)?;
    equal("the low one does not run", low.is_done(), false)
}

fn a_helper_helps_through_a_chain_of_calls(w: &mut World) -> Check {
    let (outer, inner) = (w.handler(0)?, w.handler(0)?);
    let (through, to) = (w.portal(outer, forward)?, w.portal(inner, work)?);
    let ticks = w.info.tsc_hz / 100;
    let low = w.begin((0, LOW), Hypercall::Call, to, [ticks])?;
    w.until("the inner handler runs", || board(0).load(Ordering::Relaxed) == 1)?;
    // A second one waits in the outer handler for the inner one, a third for the outer one.
    let second = w.begin((0, LOW), Hypercall::Call, through, [to, ticks])?;
    w.thread(0, MIDDLE, count_for_ever, 8)?;
    let high = w.begin((0, HIGH), Hypercall::Call, through, [to, 0])?;
    w.answer(&high)?.ok()?;
    holds("they stand still", !low.is_done() && !second.is_done())
}

fn a_helper_waits_while_the_handler_waits(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, wait_for)?;
    let sm = w.sm(0)?;
    let low = w.begin((0, LOW), Hypercall::Call, portal, [sm])?;
    w.until("the handler waits", || board(0).load(Ordering::Relaxed) == 1)?;
    let high = w.begin((0, HIGH), Hypercall::Call, portal, [sm])?;
    w.thread(0, MIDDLE, count_for_ever, 8)?;
    let before = board(8).load(Ordering::Relaxed);
    w.sleep(2000);
    holds("others run meanwhile", board(8).load(Ordering::Relaxed) > before)?;
    call(Signal, sm, []).done()?;
    call(Signal, sm, []).done()?;
    w.answer(&high)?.gives([sm, 1, 0])?;
    equal("the low one", low.is_done(), false)
}

fn the_most_urgent_caller_is_served_next(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, wait_for)?;
    let sm = w.sm(0)?;
    let callers = [
        w.begin((0, 22), Hypercall::Call, portal, [sm])?,
        w.begin((0, 22), Hypercall::Call, portal, [sm])?,
        w.begin((0, 24), Hypercall::Call, portal, [sm])?,
    ];
    for (caller, order) in [(0, 0), (2, 1), (1, 2)] {
        call(Signal, sm, []).done()?;
        w.answer(&callers[caller])?.gives([sm, order, 0])?;
    }
    Ok(())
}

/// Waits until a caller has used processor time for the handler that it waits for.
fn it_helps(w: &World, helper: &Pending) -> Check {
    let ticks = w.info.tsc_hz / 1000;
    w.until("it helps", || call(ScInfo, helper.sc, []).values[0] > ticks)
}

fn a_helper_that_ends_leaves_the_handler_running(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, work)?;
    let ticks = w.info.tsc_hz / 20;
    for part in 0..2 {
        board(0).store(0, Ordering::Relaxed);
        let low = w.begin((0, LOW), Hypercall::Call, portal, [ticks])?;
        w.until("the handler runs", || board(0).load(Ordering::Relaxed) == 1)?;
        // Below the thread that runs the tests, or it would be through before it can be ended.
        let helper = w.begin((0, LOW + 1), Hypercall::Call, portal, [ticks])?;
        it_helps(w, &helper)?;
        call(Revoke, if part == 0 { helper.ec } else { helper.sc }, [1]).done()?;
        w.answer(&low)?.ok()?;
        equal("the helper", helper.is_done(), false)?;
        let (status, _) = syscall(Head::new(Hypercall::Call, Selector(portal as u32)).0, [0; 8]);
        equal("another call", status, Success as u64)?;
    }
    Ok(())
}

fn a_handler_that_ends_while_it_is_helped_aborts_both(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, work)?;
    let ticks = w.info.tsc_hz;
    let low = w.begin((0, LOW), Hypercall::Call, portal, [ticks])?;
    w.until("the handler runs", || board(0).load(Ordering::Relaxed) == 1)?;
    let helper = w.begin((0, LOW + 1), Hypercall::Call, portal, [ticks])?;
    it_helps(w, &helper)?;
    call(Revoke, handler, [1]).done()?;
    w.answer(&helper)?.fails(Aborted)?;
    w.answer(&low)?.fails(Aborted)?;
    call(CapInfo, PD, []).ok().map(drop)
}
