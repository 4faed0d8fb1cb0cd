#pragma once
/// Work that was recorded once and is launched as one: a decoding step's dozens of small kernels cost one launch.
///   Graph graph(stream, [&] { layer.forward(x, y, context); });   graph.launch(stream);
/// What is recorded may neither allocate nor wait, so workspaces are reserved before (Context::reserve and the layers').

#include <cuda_runtime_api.h>

#include <utility>

#include "peft/cuda/check.hpp"

PEFT_BEGIN_NAMESPACE
namespace cuda {

/// Movable. The addresses that its work uses must stay valid.
class Graph {
 public:
  /// Records what `work` gives to `stream`. Throws what work() throws, and CudaError; the stream is usable afterwards.
  template <class Work>
  Graph(cudaStream_t stream, Work&& work) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "Graph: beginning to record");
    cudaGraph_t graph = nullptr;
    try {
      std::forward<Work>(work)();
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(stream, &graph));
      if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
      static_cast<void>(cudaGetLastError());
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "Graph: the end of recording");
    const cudaError_t code = cudaGraphInstantiate(&graph_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    check(code, "Graph: making it executable");
  }
  Graph(Graph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    if (graph_ != nullptr) static_cast<void>(cudaGraphExecDestroy(graph_));
  }

  /// Runs the recorded work in the order of `stream`. Throws CudaError.
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(graph_, stream), "Graph: launching"); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace cuda
PEFT_END_NAMESPACE
