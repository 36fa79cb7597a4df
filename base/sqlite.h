#pragma once

// One SQLite database file: connection, transactions, prepared statements, errors. The only file of the
// project that knows SQLite is sqlite.cc.
//
// A transaction that was committed survives the loss of power; one that was not leaves nothing. Every call
// may fail with DataLoss (damaged), ResourceExhausted (disk full), Unavailable (another process) or Internal;
// all messages name the file.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

struct sqlite3;
struct sqlite3_stmt;

namespace lazyblob::base {

// What a file is brought to, or must have been brought to.
struct SqliteSchema {
  int32_t application_id = 0;  // marks the files of one purpose
  int version = 1;             // user_version; a higher one in a file was made by a newer program
  const char* tables = "";     // CREATE statements
  // Ends the line about a damaged file: what may be done besides restoring it.
  absl::string_view if_damaged = "move it away to start anew";
};

// Thread-safe.
class Sqlite {
 public:
  // One prepared statement in use: bind, step, read columns. Reset when it goes; lives inside a transaction.
  class Query {
   public:
    ~Query();
    Query(Query&& other) noexcept;
    Query& operator=(Query&&) = delete;

    // Parameters in order. Texts must outlive the query.
    Query& Bind(int64_t value);
    Query& Bind(absl::string_view text);
    Query& BindNull();
    // The next row is there; false: no more rows. AlreadyExists: a UNIQUE constraint.
    absl::StatusOr<bool> Step();
    absl::Status Run() { return Step().status(); }

    int64_t Int(int column) const;
    bool IsNull(int column) const;
    std::string Text(int column) const;

   private:
    friend class Sqlite;
    Query(const Sqlite* database, sqlite3_stmt* statement) : database_(database), statement_(statement) {}
    const Sqlite* database_;
    sqlite3_stmt* statement_;
    int parameters_ = 0;
  };

  // Lives inside Read and Write only.
  class Transaction {
   public:
    // `sql` is a literal: statements are kept by its address.
    absl::StatusOr<Query> Prepare(const char* sql) { return database_->Prepare(sql); }
    int64_t LastId() const;   // of the last INSERT
    int64_t Changes() const;  // rows of the last statement

   private:
    friend class Sqlite;
    explicit Transaction(Sqlite* database) : database_(database) {}
    Sqlite* const database_;
  };

  // Opens or creates, mode 0600. FailedPrecondition: made by a newer version, or by another program.
  // DataLoss: damaged.
  static absl::StatusOr<std::unique_ptr<Sqlite>> Open(const std::string& path, const SqliteSchema& schema);
  // What integrity_check and foreign_key_check find wrong with a file that is there, one line each; none: it
  // is sound. Others may use it meanwhile; nothing is changed.
  static absl::StatusOr<std::vector<std::string>> Check(const std::string& path);
  ~Sqlite();
  Sqlite(const Sqlite&) = delete;
  Sqlite& operator=(const Sqlite&) = delete;

  // Runs `body` in one transaction, which is committed when it returns OK and undone otherwise. One at a
  // time: `body` neither blocks for long nor calls Read or Write. `undone` runs after a transaction that was
  // not committed and before the next: it takes back what `body` did elsewhere.
  absl::Status Write(
      absl::FunctionRef<absl::Status(Transaction&)> body, absl::FunctionRef<void()> undone = [] {})
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Read(absl::FunctionRef<absl::Status(Transaction&)> body) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  Sqlite(sqlite3* db, std::string path, std::string if_damaged);
  absl::Status SetUp(const SqliteSchema& schema);
  absl::Status CheckSchema(const SqliteSchema& schema);
  absl::StatusOr<Query> Prepare(const char* sql);
  absl::StatusOr<int64_t> Number(const char* sql);
  absl::Status Execute(const char* sql);
  void Rollback();
  absl::Status Error(int code, absl::string_view why) const;

  sqlite3* const db_;
  const std::string path_;
  const std::string if_damaged_;
  absl::Mutex mutex_;
  // Guarded by mutex_; reached by transactions, which live only while it is held.
  std::map<const char*, sqlite3_stmt*> statements_;
};

}  // namespace lazyblob::base
