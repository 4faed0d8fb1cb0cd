// Saving: every system call fails, is interrupted, falls short; the process is killed after every one of them and at
// random moments. Whatever happens, a reader finds the whole old content or the whole new one.

#include "peft/io/atomic_file.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <optional>

#include "faulty_calls.hpp"
#include "peft/core/rng.hpp"
#include "peft/io/atomic_directory.hpp"
#include "scratch.hpp"
#include "support/catch.hpp"

using namespace peft;
using namespace io_test;

namespace {

/// Content that tells its generation and whether it is whole; several writes long.
std::string content_of(int generation, std::string_view file) {
  std::string text = std::to_string(generation) + " ";
  for (int i = 0; i < 300; ++i) text += std::string(file) + std::to_string(generation * 1000 + i) + "\n";
  return text + "end";
}
int generation_of(const std::string& content, std::string_view file) {
  const int generation = std::atoi(content.c_str());
  return content == content_of(generation, file) ? generation : -1;
}

void write_content(FileWriter& writer, int generation, std::string_view file) {
  const std::string content = content_of(generation, file);
  for (std::size_t at = 0; at < content.size(); at += 1000) writer.write(std::string_view(content).substr(at, 1000));
}

/// One way of saving generations and finding them again: load gives 0 where there is none yet, -1 for a mixture.
struct Way {
  const char* name;
  bool exists_before;      // generation 1 is there
  bool exchange_works;     // as on Linux's own file systems
  void (*save)(const std::filesystem::path& folder, int generation);
  int (*load)(const std::filesystem::path& folder);
  void (*check_rest)(const std::filesystem::path& folder);  // what saving must not touch
};

void save_file(const std::filesystem::path& folder, int generation) {
  AtomicFile file(folder / "state");
  write_content(file.writer(), generation, "state");
  file.commit();
}
int load_file(const std::filesystem::path& folder) {
  if (!std::filesystem::exists(folder / "state")) return 0;
  return generation_of(read_file(folder / "state"), "state");
}

template <ExistingFolder mode>
void save_folder(const std::filesystem::path& folder, int generation) {
  AtomicDirectory target(folder / "set", mode);
  for (const char* name : {"config.json", "model"}) {
    FileWriter file = target.create(name);
    write_content(file, generation, name);
    file.finish();
  }
  target.commit();
}
int load_folder(const std::filesystem::path& folder) {
  const auto config = AtomicDirectory::locate(folder / "set", "config.json");
  const auto model = AtomicDirectory::locate(folder / "set", "model");
  if (!std::filesystem::exists(config) && !std::filesystem::exists(model)) return 0;
  const int generation = generation_of(read_file(config), "config.json");
  return generation_of(read_file(model), "model") == generation ? generation : -1;
}

void check_nothing(const std::filesystem::path&) {}
void check_others(const std::filesystem::path& folder) {
  CHECK(read_file(folder / "set" / "metrics.jsonl") == "{}\n");
  CHECK(read_file(folder / "set" / "checkpoint-1" / "state") == "kept");
}

const std::vector<Way> kWays{
    {"a new file", false, true, save_file, load_file, check_nothing},
    {"a file that exists", true, true, save_file, load_file, check_nothing},
    {"a new folder", false, true, save_folder<ExistingFolder::kUpdate>, load_folder, check_nothing},
    {"a folder with other content", true, true, save_folder<ExistingFolder::kUpdate>, load_folder, check_others},
    {"a folder replaced by exchange", true, true, save_folder<ExistingFolder::kReplace>, load_folder, check_nothing},
    {"a folder replaced by renaming", true, false, save_folder<ExistingFolder::kReplace>, load_folder, check_nothing},
};

void prepare(const Way& way, const std::filesystem::path& folder) {
  if (!way.exists_before) return;
  way.save(folder, 1);
  if (way.check_rest == check_others) {
    write_file(folder / "set" / "metrics.jsonl", "{}\n");
    std::filesystem::create_directories(folder / "set" / "checkpoint-1");
    write_file(folder / "set" / "checkpoint-1" / "state", "kept");
  }
}

/// Everything below the folder that is hidden: temporaries and what is left over.
std::vector<std::string> hidden_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().filename().string().front() == '.') names.push_back(entry.path().string());
  }
  return names;
}

/// Runs `body` in a child process and waits for it; true where it was killed.
template <class Body>
bool in_child(Body&& body) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      body();
    } catch (...) {
      ::_exit(3);
    }
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK((WIFSIGNALED(status) || WEXITSTATUS(status) == 0));
  return WIFSIGNALED(status);
}

int no_exchange(const Way& way, const std::string& call) {
  return !way.exchange_works && call == "exchange" ? ENOSYS : 0;
}

}  // namespace

TEST_CASE("atomic: saving and saving again") {
  for (const Way& way : kWays) {
    INFO(way.name);
    ScratchFolder folder;
    prepare(way, folder.path());
    FaultyCalls calls([&](int, const std::string& call) { return no_exchange(way, call); });
    CHECK(way.load(folder.path()) == (way.exists_before ? 1 : 0));
    way.save(folder.path(), 2);
    CHECK(way.load(folder.path()) == 2);
    way.save(folder.path(), 3);
    CHECK(way.load(folder.path()) == 3);
    way.check_rest(folder.path());
    CHECK(hidden_in(folder.path()).empty());
  }
}

TEST_CASE("atomic: interrupted and short writes lose nothing") {
  for (const Way& way : kWays) {
    INFO(way.name);
    ScratchFolder folder;
    prepare(way, folder.path());
    bool again = false;
    FaultyCalls calls([&](int, const std::string& call) {
      again = !again;
      return (call == "write" || call == "fsync") && again ? EINTR : no_exchange(way, call);
    });
    calls.longest_write = 7;
    way.save(folder.path(), 2);
    CHECK(way.load(folder.path()) == 2);
    CHECK(hidden_in(folder.path()).empty());
  }
}

TEST_CASE("atomic: whatever call fails, old or new is whole and nothing is left over") {
  for (const Way& way : kWays) {
    INFO(way.name);
    const int before = way.exists_before ? 1 : 0;
    int calls_of_a_save = 0;
    {
      ScratchFolder folder;
      prepare(way, folder.path());
      FaultyCalls calls([&](int, const std::string& call) { return no_exchange(way, call); });
      way.save(folder.path(), 2);
      calls_of_a_save = calls.count();
    }
    REQUIRE(calls_of_a_save > 5);
    for (int at = 0; at < calls_of_a_save; ++at) {
      for (const int error : {ENOSPC, EIO, EACCES}) {
        ScratchFolder folder;
        prepare(way, folder.path());
        std::string failed;
        std::string message;
        {
          FaultyCalls calls([&](int number, const std::string& call) {
            if (number != at) return no_exchange(way, call);
            failed = call;
            return error;
          });
          message = message_of<IoError>([&] { way.save(folder.path(), 2); });
        }
        INFO("call " << at << ", " << failed << ": " << error_text(error) << "; message: " << message);
        const bool new_counts = message.empty() || message.find("is in place") != std::string::npos ||
                                message.find("has its new files") != std::string::npos ||
                                message.find("new files of") != std::string::npos;
        CHECK(way.load(folder.path()) == (new_counts ? 2 : before));
        if (!message.empty()) {
          CHECK(message.find(error_text(error)) != std::string::npos);
          CHECK(message.find(folder.path().string()) != std::string::npos);
        }
        way.check_rest(folder.path());
        if (failed == "write" || failed == "fsync" || failed == "close" || failed == "open" || failed == "mkdir") {
          const auto hidden = hidden_in(folder.path());
          // A failed fsync of the folder after `.peft-commit` counts leaves that, for the next save to finish.
          CHECK((hidden.empty() || (new_counts && !message.empty())));
        }
        way.save(folder.path(), 3);
        CHECK(way.load(folder.path()) == 3);
        way.check_rest(folder.path());
        CHECK(hidden_in(folder.path()).empty());
      }
    }
  }
}

TEST_CASE("atomic: a process killed after any call leaves old or new") {
  for (const Way& way : kWays) {
    INFO(way.name);
    const int before = way.exists_before ? 1 : 0;
    for (int at = 0;; ++at) {
      INFO("killed after call " << at);
      ScratchFolder folder;
      prepare(way, folder.path());
      const bool killed = in_child([&] {
        FaultyCalls calls([&](int, const std::string& call) { return no_exchange(way, call); });
        calls.die_after = at;
        way.save(folder.path(), 2);
      });
      const int found = way.load(folder.path());
      CHECK((found == before || found == 2));
      way.check_rest(folder.path());
      if (!killed) {
        CHECK(found == 2);
        REQUIRE(at > 5);
        break;
      }
      // The next one finds its way, whether the file system can exchange or not.
      way.save(folder.path(), 3);
      CHECK(way.load(folder.path()) == 3);
      way.check_rest(folder.path());
      CHECK(hidden_in(folder.path()).empty());
    }
  }
}

TEST_CASE("atomic: sixty kills at random moments") {
  Philox random(20);
  for (const Way& way : kWays) {
    INFO(way.name);
    ScratchFolder folder;
    prepare(way, folder.path());
    int last = way.exists_before ? 1 : 0;
    for (int kill_number = 0; kill_number < 60; ++kill_number) {
      const pid_t child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        FaultyCalls calls([&](int, const std::string& call) { return no_exchange(way, call); });
        for (int generation = last + 1;; ++generation) way.save(folder.path(), generation);
      }
      const timespec pause{0, static_cast<long>(random.below(4'000'000))};
      ::nanosleep(&pause, nullptr);
      ::kill(child, SIGKILL);
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child);
      REQUIRE(WIFSIGNALED(status));
      const int found = way.load(folder.path());
      INFO("kill " << kill_number << ", found generation " << found << " after " << last);
      REQUIRE(found >= last);
      last = found;
      way.check_rest(folder.path());
    }
    way.save(folder.path(), last + 1);
    CHECK(way.load(folder.path()) == last + 1);
    CHECK(hidden_in(folder.path()).empty());
  }
}

TEST_CASE("atomic: a full disk is told with file and bytes, and the old file stays") {
  ScratchFolder folder;
  save_file(folder.path(), 1);
  FaultyCalls calls([](int number, const std::string& call) { return call == "write" && number > 2 ? ENOSPC : 0; });
  const std::string message = message_of<IoError>([&] { save_file(folder.path(), 2); });
  CHECK(message.find((folder / "state").string()) != std::string::npos);
  CHECK(message.find("No space left on device, 2000 bytes after its start") != std::string::npos);
  CHECK(load_file(folder.path()) == 1);
  CHECK(names_in(folder.path()).size() == 1);
}

TEST_CASE("atomic: what is not committed leaves nothing") {
  ScratchFolder folder;
  save_file(folder.path(), 1);
  {
    AtomicFile file(folder / "state");
    file.write("half");
    AtomicDirectory set(folder / "set");
    set.create("config.json").write("half");
  }
  CHECK(load_file(folder.path()) == 1);
  CHECK(names_in(folder.path()).size() == 1);
}

TEST_CASE("atomic: temporaries in use are left alone, those of the dead are removed") {
  ScratchFolder folder;
  write_file(folder / ".state.tmp-1-0", "left over");
  write_file(folder / ".other.tmp-1-0", "of another file");
  {
    AtomicFile first(folder / "state");
    CHECK_FALSE(std::filesystem::exists(folder / ".state.tmp-1-0"));
    write_content(first.writer(), 1, "state");
    save_file(folder.path(), 2);  // runs to its end while the first is in the making
    CHECK(load_file(folder.path()) == 2);
    first.commit();
  }
  CHECK(load_file(folder.path()) == 1);
  CHECK(names_in(folder.path()).size() == 2);

  AtomicDirectory first(folder / "set");
  save_folder<ExistingFolder::kUpdate>(folder.path(), 5);
  for (const char* name : {"config.json", "model"}) {
    FileWriter file = first.create(name);
    write_content(file, 4, name);
    file.finish();
  }
  // The folder came to be meanwhile; it is not overwritten.
  CHECK_THROWS_AS(first.commit(), IoError);
  CHECK(load_folder(folder.path()) == 5);
}

TEST_CASE("atomic: names and targets that cannot be") {
  ScratchFolder folder;
  CHECK(message_of<IoError>([&] { AtomicFile file(folder / "no/such/folder/x"); }).find("create the folder first") !=
        std::string::npos);
  std::filesystem::create_directories(folder / "is-a-folder");
  write_file(folder / "is-a-folder/x", "kept");
  AtomicFile file(folder / "is-a-folder");
  CHECK_THROWS_AS(file.commit(), IoError);
  CHECK(read_file(folder / "is-a-folder/x") == "kept");

  write_file(folder / "is-a-file", "kept");
  CHECK(message_of<IoError>([&] { AtomicDirectory set(folder / "is-a-file"); }).find("it is a file") !=
        std::string::npos);
  AtomicDirectory set(folder / "new/with/parents");
  for (const char* name : {"", "a/b", "..", ".hidden", "/etc/passwd"}) CHECK_THROWS_AS(set.create(name), IoError);
  {
    FileWriter once = set.create("once");
    once.finish();
  }
  CHECK_THROWS_AS(set.create("once"), IoError);
  set.commit();
  CHECK(std::filesystem::exists(folder / "new/with/parents/once"));

  std::filesystem::create_directories(folder / "set/checkpoint-1");
  const std::string message =
      message_of<IoError>([&] { AtomicDirectory replaced(folder / "set", ExistingFolder::kReplace); });
  CHECK(message.find("sub-folder checkpoint-1, which would be lost") != std::string::npos);
}

TEST_CASE("atomic: links are followed, long names and trailing slashes work, relative paths too") {
  ScratchFolder folder;
  std::filesystem::create_directories(folder / "real");
  write_file(folder / "real/state", "old");
  std::filesystem::create_symlink("real/state", folder / "state");
  save_file(folder.path(), 2);
  CHECK(std::filesystem::is_symlink(folder / "state"));
  CHECK(load_file(folder / "real") == 2);
  CHECK(names_in(folder / "real").size() == 1);

  const std::string long_name(255, 'n');
  {
    AtomicFile file(folder / long_name);
    file.write("x");
    file.commit();
  }
  CHECK(read_file(folder / long_name) == "x");

  AtomicDirectory slash((folder / "set").string() + "/");
  slash.create("a").finish();
  slash.commit();
  CHECK(std::filesystem::exists(folder / "set/a"));

  const auto back = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  {
    AtomicFile file("here");
    file.write("y");
    file.commit();
    AtomicDirectory set("there");
    set.create("a").finish();
    set.commit();
    AtomicDirectory dot(".");
    dot.create("b").finish();
    dot.commit();
  }
  std::filesystem::current_path(back);
  CHECK(read_file(folder / "here") == "y");
  CHECK(std::filesystem::exists(folder / "there/a"));
  CHECK(std::filesystem::exists(folder / "b"));
  CHECK(hidden_in(folder.path()).empty());
}
