#include <pybind11/stl.h>

#include <utility>

#include "bindings/comm_support.h"
#include "comm/faulty_comm.h"
#include "comm/thread_comm.h"

namespace sparsespan::bindings {

namespace {

using Comm = std::shared_ptr<Communicator>;
using Started = std::pair<std::shared_ptr<Work>, py::object>;  // the work and its result
using Timeout = std::optional<double>;

Reduce parse_reduce(std::string_view op, const std::string& name) {
  if (name == "sum") return Reduce::sum;
  if (name == "max") return Reduce::max;
  refuse_value(op, "op", "is \"", name, "\", needs \"sum\" or \"max\"");
}

// `out` itself, or a new array like x with another number of rows.
py::object rows_or_new(const py::object& out, const Tensor& x, std::int64_t rows) {
  if (!out.is_none() || !x || x.rank == 0 || x.dtype == DType::other || x.dtype == DType::none) return out;
  std::vector<py::ssize_t> shape(x.shape.begin(), x.shape.begin() + x.rank);
  shape[0] = rows;
  return py::array(numpy_dtype(x.dtype), shape);
}

std::int64_t sum_of(const Rows& rows) {
  std::int64_t sum = 0;
  for (const auto r : rows) sum += std::max<std::int64_t>(r, 0);
  return sum;
}

Started bind_all_gather(Communicator& c, const py::object& x, const std::optional<Rows>& counts, const py::object& out,
                        Timeout timeout, const std::string& plan) {
  const Tensor in = view("all_gather", "x", x);
  const auto result = rows_or_new(out, in, counts ? sum_of(*counts) : in.shape[0] * c.size());
  const Tensor to = view("all_gather", "out", result);
  const auto options = comm_options(timeout, plan, x, result);
  std::shared_ptr<Work> work;
  without_gil([&] { work = counts ? c.iall_gatherv(in, to, *counts, options) : c.iall_gather(in, to, options); });
  return {work, result};
}

Started bind_all_to_all(Communicator& c, const py::object& x, const std::optional<Rows>& send,
                        const std::optional<Rows>& recv, const py::object& out, Timeout timeout,
                        const std::string& plan) {
  const Tensor in = view("all_to_all", "x", x);
  const auto result = rows_or_new(out, in, recv ? sum_of(*recv) : in.shape[0]);
  const Tensor to = view("all_to_all", "out", result);
  if (send.has_value() != recv.has_value()) {
    refuse_value("all_to_all", send ? "recv_counts" : "send_counts", "is None, needs counts like the other one");
  }
  const auto options = comm_options(timeout, plan, x, result);
  std::shared_ptr<Work> work;
  without_gil([&] { work = send ? c.iall_to_allv(in, to, *send, *recv, options) : c.iall_to_all(in, to, options); });
  return {work, result};
}

Started bind_reduce_scatter(Communicator& c, const py::object& x, const std::string& op, const py::object& out,
                            Timeout timeout, const std::string& plan) {
  const Tensor in = view("reduce_scatter", "x", x);
  const Reduce reduce = parse_reduce("reduce_scatter", op);
  const auto result = rows_or_new(out, in, in.shape[0] / c.size());
  const Tensor to = view("reduce_scatter", "out", result);
  const auto options = comm_options(timeout, plan, x, result);
  std::shared_ptr<Work> work;
  without_gil([&] { work = c.ireduce_scatter(in, to, reduce, options); });
  return {work, result};
}

Started bind_all_reduce(Communicator& c, const py::object& x, const std::string& op, const py::object& out,
                        Timeout timeout, const std::string& plan) {
  const Tensor in = view("all_reduce", "x", x);
  const Reduce reduce = parse_reduce("all_reduce", op);
  const auto result = x.is_none() ? out : out_or_empty_like(out, x, in.dtype);
  const Tensor to = view("all_reduce", "out", result);
  const auto options = comm_options(timeout, plan, x, result);
  std::shared_ptr<Work> work;
  without_gil([&] { work = c.iall_reduce(in, to, reduce, options); });
  return {work, result};
}

Started bind_broadcast(Communicator& c, const py::object& x, int root, Timeout timeout, const std::string& plan) {
  const Tensor buffer = view("broadcast", "x", x);
  const auto options = comm_options(timeout, plan, x);
  std::shared_ptr<Work> work;
  without_gil([&] { work = c.ibroadcast(buffer, root, options); });
  return {work, x};
}

Started bind_send(Communicator& c, const py::object& x, int to, std::int64_t tag, Timeout timeout,
                  const std::string& plan) {
  const Tensor in = view("send", "x", x);
  const auto options = comm_options(timeout, plan, x);
  std::shared_ptr<Work> work;
  without_gil([&] { work = c.isend(in, to, tag, options); });
  return {work, py::none()};
}

Started bind_recv(Communicator& c, const py::object& out, int source, std::int64_t tag, Timeout timeout,
                  const std::string& plan) {
  const Tensor to = view("recv", "out", out);
  const auto options = comm_options(timeout, plan, out);
  std::shared_ptr<Work> work;
  without_gil([&] { work = c.irecv(to, source, tag, options); });
  return {work, out};
}

Started bind_barrier(Communicator& c, Timeout timeout, const std::string& plan) {
  const auto options = comm_options(timeout, plan);
  std::shared_ptr<Work> work;
  without_gil([&] { work = c.ibarrier(options); });
  return {work, py::none()};
}

py::dict counter_dict(const Counter& counter) {
  py::dict d;
  d["calls"] = counter.calls;
  d["bytes"] = counter.bytes;
  d["seconds"] = counter.seconds;
  return d;
}

py::dict bind_trace(const Communicator& c) {
  py::dict trace;
  for (int i = 0; i < kCommOpCount; ++i) {
    const auto op = static_cast<CommOp>(i);
    const Counter counter = c.ledger()->counter(op);
    if (counter.calls > 0) trace[py::str(std::string(name_of(op)))] = counter_dict(counter);
  }
  if (c.ledger()->checks().calls > 0) trace["checks"] = counter_dict(c.ledger()->checks());
  return trace;
}

py::list bind_timeline(const Communicator& c) {
  py::list spans;
  for (const CommSpan& span : c.ledger()->timeline()) {
    py::dict d;
    d["op"] = std::string(name_of(span.op));
    d["start"] = span.start;
    d["end"] = span.end;
    d["bytes"] = span.bytes;
    d["peer"] = span.peer < 0 ? py::object(py::none()) : py::int_(span.peer);
    d["failed"] = span.failed;
    spans.append(std::move(d));
  }
  return spans;
}

// Dropping a communicator may wait for readers: without the GIL, which they may need to get on.
void bind_operations(py::class_<Communicator, Comm>& c) {
  const auto timeout = [] { return py::arg("timeout") = py::none(); };
  const auto plan = [] { return py::arg("plan") = ""; };
  const auto out = [] { return py::arg("out") = py::none(); };
  c.def("all_gather", &bind_all_gather, py::arg("x"), py::arg("counts") = py::none(), out(), timeout(), plan());
  c.def("all_to_all", &bind_all_to_all, py::arg("x"), py::arg("send_counts") = py::none(),
        py::arg("recv_counts") = py::none(), out(), timeout(), plan());
  c.def("reduce_scatter", &bind_reduce_scatter, py::arg("x"), py::arg("op") = "sum", out(), timeout(), plan());
  c.def("all_reduce", &bind_all_reduce, py::arg("x"), py::arg("op") = "sum", out(), timeout(), plan());
  c.def("broadcast", &bind_broadcast, py::arg("x"), py::arg("root"), timeout(), plan());
  c.def("send", &bind_send, py::arg("x"), py::arg("to"), py::arg("tag") = 0, timeout(), plan());
  c.def("recv", &bind_recv, py::arg("out"), py::arg("source"), py::arg("tag") = 0, timeout(), plan());
  c.def("barrier", &bind_barrier, timeout(), plan());
}

void bind_facts(py::class_<Communicator, Comm>& c) {
  c.def_property_readonly("rank", &Communicator::rank).def_property_readonly("size", &Communicator::size);
  c.def_property_readonly("kind", &Communicator::kind);
  c.def_property("timeout", &Communicator::timeout, &Communicator::set_timeout);
  c.def_property_readonly("issued", [](const Communicator& self) { return self.ledger()->issued(); });
  c.def("trace", &bind_trace).def("timeline", &bind_timeline).def("record", &Communicator::record);
  c.def("reset_trace", [](const Communicator& self) { self.ledger()->reset(); });
  c.def("abort", &Communicator::poison, py::arg("reason"), py::call_guard<py::gil_scoped_release>());
  c.def("close", &Communicator::close, py::call_guard<py::gil_scoped_release>());
  c.def(
      "split",
      [](Communicator& self, std::int64_t color, std::int64_t key, Timeout timeout) {
        return self.split(color, key, timeout.value_or(-1));
      },
      py::arg("color"), py::arg("key") = 0, py::arg("timeout") = py::none(), py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void register_comm(py::module_& parent) {
  auto m = parent.def_submodule("comm");
  register_comm_errors(m);
  py::class_<Work, std::shared_ptr<Work>>(m, "Work")
      .def("test", &Work::test, py::call_guard<py::gil_scoped_release>())
      .def(
          "wait", [](Work& self, Timeout timeout) { self.wait(timeout.value_or(-1)); }, py::arg("timeout") = py::none(),
          py::call_guard<py::gil_scoped_release>());
  py::class_<Communicator, Comm> c(m, "Communicator");
  bind_facts(c);
  bind_operations(c);
  m.def(
      "thread_comms",
      [](int n) {
        const auto ranks = ThreadComm::make(n);
        return std::vector<Comm>(ranks.begin(), ranks.end());
      },
      py::arg("n"));
  m.def(
      "faulty_comm",
      [](const Comm& comm, const std::string& fault, std::int64_t at, double seconds) -> Comm {
        return std::make_shared<FaultyComm>(comm, parse_fault("FaultyComm", "fault", fault), at, seconds);
      },
      py::arg("comm"), py::arg("fault"), py::arg("at"), py::arg("seconds"));
}

}  // namespace sparsespan::bindings
