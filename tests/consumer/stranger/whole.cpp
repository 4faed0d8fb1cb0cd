// The umbrella header in a second translation unit of the same program.
#include <peft/peft.hpp>

peft::Index whole_library() {
  peft::AdapterRegistry<float> registry;
  return static_cast<peft::Index>(registry.names().size());
}
