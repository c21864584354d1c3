// A Transport written in Python carries the native operations.

#include <pybind11/stl.h>
#include <pybind11/trampoline_self_life_support.h>

#include <utility>

#include "bindings/comm_support.h"
#include "comm/transport_comm.h"

namespace sparsespan::bindings {

namespace {

// The bytes of a buffer as a NumPy array over the same memory.
py::array bytes_view(const std::byte* data, std::int64_t size) {
  static const std::byte nowhere{};
  const void* address = data == nullptr ? &nowhere : data;  // NumPy would allocate for a null pointer
  return py::array(py::dtype("uint8"), {static_cast<py::ssize_t>(size)}, {py::ssize_t{1}}, address, py::none());
}

std::int64_t sum_of(const Transport::Sizes& sizes) {
  std::int64_t sum = 0;
  for (const auto s : sizes) sum += s;
  return sum;
}

// Whatever the library raises becomes a comm_error with its text; Ctrl-C and the like pass through as they are.
template <class F>
auto asking(const char* what, F&& f) {
  const py::gil_scoped_acquire acquire;
  try {
    return f();
  } catch (py::error_already_set& e) {
    if (!e.matches(PyExc_Exception)) throw;
    const auto type = py::cast<std::string>(e.type().attr("__name__"));
    throw comm_error(std::string(what) + ": the transport failed: " + type + ": " +
                     py::cast<std::string>(py::str(e.value())));
  }
}

class PyTicket final : public Ticket {
 public:
  explicit PyTicket(py::object ticket) : ticket_(std::move(ticket)) {}
  ~PyTicket() override {
    const py::gil_scoped_acquire acquire;
    ticket_ = py::object();
  }
  PyTicket(const PyTicket&) = delete;
  PyTicket& operator=(const PyTicket&) = delete;
  bool test() override {
    return asking("test", [&] { return py::cast<bool>(ticket_.attr("test")()); });
  }

 private:
  py::object ticket_;
};

struct PyTransport final : Transport, py::trampoline_self_life_support {
  using Started = std::unique_ptr<Ticket>;

  // The Python method of this name, called.
  template <class... Args>
  py::object ask(const char* name, const Args&... args) const {
    const py::function method = py::get_override(static_cast<const Transport*>(this), name);
    if (!method) throw comm_error(std::string("Transport: the method ") + name + " is not defined by the subclass");
    return method(args...);
  }
  template <class... Args>
  Started begin(const char* name, const Args&... args) const {
    py::object ticket = ask(name, args...);
    return ticket.is_none() ? nullptr : std::make_unique<PyTicket>(std::move(ticket));
  }

  int rank() const override {
    return asking("rank", [&] { return py::cast<int>(ask("rank")); });
  }
  int size() const override {
    return asking("size", [&] { return py::cast<int>(ask("size")); });
  }
  std::string kind() const override {
    return asking("kind", [&] { return py::cast<std::string>(ask("kind")); });
  }
  Started all_gather(const std::byte* in, std::byte* out, const Sizes& sizes) override {
    return asking("all_gather", [&] {
      return begin("all_gather", bytes_view(in, sizes[rank()]), bytes_view(out, sum_of(sizes)), sizes);
    });
  }
  Started all_to_all(const std::byte* in, std::byte* out, const Sizes& to, const Sizes& from) override {
    return asking("all_to_all", [&] {
      return begin("all_to_all", bytes_view(in, sum_of(to)), bytes_view(out, sum_of(from)), to, from);
    });
  }
  Started broadcast(std::byte* data, std::int64_t bytes, int root) override {
    return asking("broadcast", [&] { return begin("broadcast", bytes_view(data, bytes), root); });
  }
  Started send(const std::byte* in, std::int64_t bytes, int to, std::int64_t tag) override {
    return asking("send", [&] { return begin("send", bytes_view(in, bytes), to, tag); });
  }
  Started recv(std::byte* out, std::int64_t bytes, int from, std::int64_t tag) override {
    return asking("recv", [&] { return begin("recv", bytes_view(out, bytes), from, tag); });
  }
  std::shared_ptr<Transport> split(std::int64_t color, std::int64_t key, const std::vector<int>& ranks) override {
    return asking("split", [&] { return py::cast<std::shared_ptr<Transport>>(ask("split", color, key, ranks)); });
  }
  void poison(const std::string& reason) override {
    asking("abort", [&] { ask("abort", reason); });
  }
  std::optional<Alarm> alarm(std::int64_t sequence) override {
    return asking("alarm", [&]() -> std::optional<Alarm> {
      const py::object told = ask("alarm", sequence);
      if (told.is_none()) return std::nullopt;
      const auto [rank, reason] = py::cast<std::pair<int, std::string>>(told);
      return Alarm{rank, reason};
    });
  }
  std::vector<int> late(std::int64_t sequence) override {
    return asking("late", [&] { return py::cast<std::vector<int>>(ask("late", sequence)); });
  }
  void close() override {
    asking("close", [&] { ask("close"); });
  }
};

}  // namespace

void register_comm_transport(py::module_& parent) {
  auto m = parent.def_submodule("comm");
  py::class_<Transport, PyTransport, py::smart_holder>(m, "Transport").def(py::init<>());
  m.def(
      "trust",
      [](Communicator& comm) {
        if (auto* over = dynamic_cast<TransportComm*>(&comm)) over->trust();
      },
      py::arg("comm"));
  m.def(
      "transport_comm",
      [](std::shared_ptr<Transport> transport, bool checked) -> std::shared_ptr<Communicator> {
        return std::make_shared<TransportComm>(std::move(transport), checked);
      },
      py::arg("transport"), py::arg("checked"));
}

}  // namespace sparsespan::bindings
