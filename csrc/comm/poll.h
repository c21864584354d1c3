#pragma once

// Every wait looks up from time to time, so that Ctrl-C ends it: the bindings put Python's signal check here.

namespace sparsespan {

using PollHook = void (*)();
// nullptr takes it away. The hook may throw; it is called on the waiting thread, with no lock held.
void set_poll_hook(PollHook hook);
void poll_hook();

}  // namespace sparsespan
