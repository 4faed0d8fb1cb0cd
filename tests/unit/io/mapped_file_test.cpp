#include "peft/io/mapped_file.hpp"

#include <unistd.h>

#include <vector>

#include "scratch.hpp"
#include "support/catch.hpp"
#include "support/resident.hpp"

using io_test::ScratchFolder;
using io_test::write_file;
using peft::MappedFile;

TEST_CASE("released pages leave memory, their neighbours stay, and all bytes can be read again") {
  const ScratchFolder folder;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  std::string content(16 * page + 100, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i % 251);
  write_file(folder / "file", content);
  const auto file = MappedFile::open(folder / "file");
  const std::span<const std::byte> bytes = file->bytes();
  REQUIRE(bytes.size() == content.size());
  const auto resident = [&] { return peft_test::resident_bytes(folder / "file").value_or(0) / page; };
  const auto read = [&] { return io_test::text_of(bytes) == content; };
  CHECK(read());
  if (resident() != 17) {
    WARN("this system does not tell which pages are resident: only the bytes are checked");
  } else {
    file->release(bytes.subspan(page + 1, 4 * page));  // pages 2 to 4 are whole within it
    CHECK(resident() == 14);
    file->release(bytes.subspan(8 * page));  // with the last, cut one
    CHECK(resident() == 5);
    file->release(bytes.subspan(10, 20));
    file->release({});
    CHECK(resident() == 5);
  }
  CHECK(read());
  file->release(bytes);
  CHECK(read());
}
