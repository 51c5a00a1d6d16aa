//! Panics inside sled become values.
//!
//! sled 0.34 answers many damaged files with a panic (`tried to serialize Uninitialized`), so every call into it goes
//! through [`catch`]. Nobody should read a panic message about a fault that is handled: the hook is quiet for the
//! calling thread while the call lasts, and passes every other panic on.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// Runs `act`; a panic in it is its message.
///
/// State that `act` shares with the rest must not be used after an error, or must be safe to use half-changed.
pub(super) fn catch<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                loud(info);
            }
        }));
    });
    let was_quiet = IS_QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(act));
    IS_QUIET.set(was_quiet);
    result.map_err(|payload| message_of(payload.as_ref()))
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without words").to_string()
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(catch(|| panic!("page {}", 3)), Err::<(), _>("page 3".to_string()));
        assert_eq!(catch(|| panic!("torn")), Err::<(), _>("torn".to_string()));
        assert!(!IS_QUIET.get());
    }
}
